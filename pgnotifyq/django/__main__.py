"""`python -m pgnotifyq.django COMMAND`: the same as `manage.py pgnotifyq COMMAND`.

It needs no `pgnotifyq.django` in INSTALLED_APPS. Start it in the folder of `manage.py`. The
settings are those of `--settings`, else of DJANGO_SETTINGS_MODULE, else those that `manage.py`
names.
"""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

VARIABLE = "DJANGO_SETTINGS_MODULE"
_NAMED = re.compile(rf"""['"]{VARIABLE}['"]\s*,\s*['"]([\w.]+)['"]""")


def main() -> None:
    """Set Django up, and run one command; the process ends with its exit code."""
    import django
    from django.core.management.base import handle_default_options

    from pgnotifyq.django.options import own_options

    given, _ = own_options().parse_known_args(sys.argv[1:])
    handle_default_options(given)
    if VARIABLE not in os.environ and (named := _settings_of_manage()) is not None:
        os.environ[VARIABLE] = named
    if VARIABLE not in os.environ:
        sys.exit("Which settings? Start this in the folder of manage.py, or give --settings mysite.settings.")
    django.setup()

    from pgnotifyq.django.management.commands.pgnotifyq import Command

    command = Command()
    command.called_as = ("python", "-m pgnotifyq.django")
    command.run_from_argv([*command.called_as, *sys.argv[1:]])


def _settings_of_manage() -> str | None:
    """Return the settings that `manage.py` of this folder names."""
    try:
        found = _NAMED.search(Path("manage.py").read_text(encoding="utf-8"))
    except OSError:
        return None
    return None if found is None else found[1]


if __name__ == "__main__":
    main()
