"""Attacks on tenants, on roles and on the queue, each of which is refused or finds nothing.

`python -m tests.attacks` runs them all and prints what became of each.
"""
