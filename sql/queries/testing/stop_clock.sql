-- stop_clock: let the clock of a whole database stand at a time, for every session of it, open ones
-- too. For a program's tests: the database is the test's own, and so is the schema.
-- In:    a time; null: the clock goes on.
-- Locks: the function's row in pg_proc.
create or replace function {schema}.clock() returns timestamptz
language sql volatile parallel safe
as $$ select coalesce(nullif(current_setting('pgnotifyq.clock', true), '')::timestamptz, $1::timestamptz, clock_timestamp()) $$
