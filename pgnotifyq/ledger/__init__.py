"""What to ask, and what the answers mean: a verb is a value (ask.py), and waits for nothing.

Rows become the model, SQLSTATE becomes errors. The SQL itself lives in `sql/`.
"""
