"""`manage.py pgnotifyq`."""
