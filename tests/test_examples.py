"""Every program in examples/ is run as a newcomer runs it, and does what it is there to show."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import psycopg
import pytest

from pgnotifyq.embedded import _free_port
from tests.pages import as_url, serving

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

EXAMPLES = Path(__file__).parent.parent / "examples"
PRINTED = {
    "signup.py": """\
ada@example.org has an account, and a mail is on its way
grace@example.org has an account, and a mail is on its way
ada@example.org has an account already: nothing was enqueued
2 mails to send
""",
    "heartbeat.py": """\
3 ticks, on whole seconds: True, in order: True
no two in one second: True
""",
    "tenants.py": """\
acme: 2000 of 5000 (pro)
42: 2000 of 100 (free)
acme: 4000 of 5000 (pro)
[(True, 'over the limit', '2000')]
""",
    "encode_video.py": """\
short: completed short.mp4
long: cancelled
left: ['short.mp4']
""",
    "import_lines.py": """\
the first worker was killed
completed by attempt 2
it began at the start: False
lines, and different ones: (2000, 2000)
""",
    "thumbnails.py": """\
trap: cancelled
completed {'file': 'a.jpg', 'size': [64, 48]}
completed {'file': 'b.jpg', 'size': [64, 48]}
completed {'file': 'c.jpg', 'size': [64, 48]}
""",
}


@pytest.mark.parametrize("name", sorted(PRINTED))
def test_program_prints_what_it_promises(name: str, dsn: str) -> None:
    """Run with an address and nothing else, it ends well and prints this."""
    environment = {**os.environ, "PGNOTIFYQ_DSN": dsn}
    command = [sys.executable, str(EXAMPLES / name)]
    ran = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, cwd=EXAMPLES.parent)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout == PRINTED[name]


def test_every_program_is_run_and_listed() -> None:
    """None is forgotten, here or in the list."""
    programs = {file.name for file in EXAMPLES.glob("*.py")}
    listed = (EXAMPLES / "README.md").read_text(encoding="utf-8")
    assert programs == set(PRINTED)
    assert all(f"[{name}]({name})" in listed for name in programs)


@pytest.fixture
def shop(dsn: str, tmp_path: Path) -> Iterator[Callable[[str], httpx.Client]]:
    """Start what the shop's README says: its server, or its worker. Both end with the test."""
    port = str(_free_port())
    environment = {
        **os.environ,
        "PGNOTIFYQ_DSN": as_url(dsn),
        "PYTHONDONTWRITEBYTECODE": "1",
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }
    with ExitStack() as stack:

        def start(command: str) -> httpx.Client:
            command = command.replace("uvicorn app:app", f"uvicorn app:app --port {port}")
            stack.enter_context(serving(command, EXAMPLES / "fastapi_shop", environment, port, log_folder=tmp_path))
            return stack.enter_context(httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30))

        yield start


def shop_command(begin: str) -> str:
    lines = (EXAMPLES / "fastapi_shop" / "README.md").read_text(encoding="utf-8").splitlines()
    return next(line.removesuffix(" &") for line in lines if line.startswith(begin))


def until(web: httpx.Client, order: int, status: str) -> dict[str, Any]:
    """Ask for a receipt until it is as wanted."""
    deadline = time.monotonic() + 60
    while (answer := web.get(f"/receipts/{order}").json())["status"] != status:
        assert time.monotonic() < deadline, answer
        time.sleep(0.02)
    return dict(answer)


def test_fastapi_shop(shop: Callable[[str], httpx.Client], dsn: str) -> None:
    """An order has its receipt; one that is refused has neither row nor job; one may be cancelled; one that failed is tried again."""
    web = shop(shop_command("uvicorn"))
    ordered = web.post("/orders", json={"email": "ada@example.org", "cents": 1200})
    assert (ordered.status_code, ordered.json()) == (202, {"order": 1})
    assert web.post("/orders", json={"email": "bob@example.org", "cents": 0}).status_code == 422
    assert web.get("/receipts/99").status_code == 404
    with psycopg.connect(dsn, autocommit=True) as session:
        counts = "select (select count(*) from orders), (select count(*) from pgnotifyq.jobs)"
        assert session.execute(counts).fetchone() == (1, 1)
        assert web.get("/receipts/1").json() == {"status": "pending", "attempts": 0, "receipt": None}

        cancelled = web.post("/orders", json={"email": "eve@example.org", "cents": 1}).json()["order"]
        assert web.delete(f"/receipts/{cancelled}").json() == {"outcome": "cancelled"}
        session.execute("alter table orders add constraint none_yet check (receipt is null)")

        shop(shop_command("python -m pgnotifyq worker"))
        assert until(web, cancelled, "cancelled")["receipt"] is None
        failed = "exists (select from pgnotifyq.job_executions where outcome = 'failed')"
        deadline = time.monotonic() + 60
        while session.execute(f"select {failed}").fetchone() != (True,):
            assert time.monotonic() < deadline
            time.sleep(0.02)
        session.execute("alter table orders drop constraint none_yet")
        session.execute("update pgnotifyq.jobs set scheduled_at = now() where status = 'pending'")

        answer = until(web, 1, "completed")
        assert answer["receipt"] == "Dear ada@example.org, you have paid 12.00."
        assert session.execute("select receipt from orders where id = 1").fetchone() == (answer["receipt"],)
        assert answer["attempts"] > 1
