-- undo: take back what that part has written, errors that have aborted the transaction included.
rollback to savepoint pgnotifyq_job
