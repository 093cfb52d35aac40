-- release: end the part that savepoint.sql has begun, and keep what the part has written.
release savepoint pgnotifyq_job
