"""Benchmarks: one question a script. `python -m bench NAME`; see README.md for what the numbers mean."""
