-- transaction_id: take a new transaction id, in a transaction of its own: the T of
-- runtime/sleep.py.
select pg_current_xact_id()::text::int8
