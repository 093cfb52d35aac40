"""Real workers, as tasks of the test and as processes of their own, on a real server."""
