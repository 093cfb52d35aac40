-- savepoint: begin a part of the open transaction that can be undone by itself. For a program's
-- tests.
savepoint pgnotifyq_job
