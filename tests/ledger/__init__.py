"""The queue in SQL alone: what each function promises, on a real server."""
