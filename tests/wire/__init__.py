"""Floor 1, against a real PostgreSQL."""
