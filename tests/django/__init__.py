"""Django's tasks on this queue."""
