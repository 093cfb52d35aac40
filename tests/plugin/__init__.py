"""Tests of what users' tests use: run in pytest, as a user would run them."""
