"""Mutants: the product broken on purpose, one small change each, and the tests that must turn red.

`python -m tests.mutants` runs them all; see tests/README.md.
"""
