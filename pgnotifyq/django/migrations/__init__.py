"""Django's migrations of the queue: one for each version of its schema."""
