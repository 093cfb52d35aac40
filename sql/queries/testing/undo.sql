-- undo: take back what was written since savepoint.sql, errors that have aborted the transaction
-- included.
rollback to savepoint pgnotifyq_job
