"""A registry that nobody has registered anything in."""

from pgnotifyq import JobRegistry

empty = JobRegistry()
