"""Old and new releases on one schema: `python -m tests.rolling`."""
