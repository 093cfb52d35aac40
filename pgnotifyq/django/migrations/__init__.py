"""Migrations of Django that migrate the queue: one a version of its schema."""
