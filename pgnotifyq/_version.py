"""The version of the package, in one place that every floor may read."""

from __future__ import annotations

__version__ = "0.1.0"
