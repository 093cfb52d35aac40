"""Floor 1: PostgreSQL spoken natively by trio. Knows nothing of jobs."""
