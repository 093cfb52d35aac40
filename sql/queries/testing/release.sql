-- release: end that part, and keep what it has written.
release savepoint pgnotifyq_job
