"""The doors, on a real database."""
