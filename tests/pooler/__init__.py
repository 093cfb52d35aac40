"""Behind pgbouncer in transaction mode: a real one, between the workers and the server."""
