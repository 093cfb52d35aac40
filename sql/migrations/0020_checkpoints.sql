-- A job has a state that its handler has saved: whoever runs the job next goes on from there. JSON;
-- null if nothing was saved.
--
-- Nothing here rewrites or reads a table, and what the release before says and asks goes on. It
-- knows of no state, and keeps what is there: a job that it gives back has its state still.

-- The bound is of the text, as a worker gets it. `ctx.save` admits 64 KiB of compact JSON;
-- PostgreSQL adds a space behind each comma and colon, and writes out numbers such as 1e300. See
-- 0012_headers.sql: why a domain, and why it comes without its rule first.
create domain {schema}.saved as jsonb;
alter table {schema}.jobs add column saved {schema}.saved;
alter domain {schema}.saved
    add constraint saved_is_short check (octet_length(value::text) <= 131072) not valid;
alter table {schema}.dead_letter_jobs add column saved jsonb;

-- A job as a claim brings it. Workers read its columns in this order. The release before takes the
-- last one for the headers, so the state comes before them.
--
-- A type of its own: `claimed_job` was altered twice, and a claim that waits for this migration's
-- lock on the jobs runs the function of before, whose row then does not fit its own type (42804,
-- which ends a worker). So that type stays as it is. Nobody uses it from now on.
create type {schema}.claimed as (
    id uuid,
    current_execution_id uuid,
    org_id uuid,
    queue_name text,
    job_type text,
    -- JSON as text. Null: larger than the worker takes.
    payload text,
    priority smallint,
    scheduled_at timestamptz,
    attempts integer,
    max_attempts integer,
    unique_key text,
    created_at timestamptz,
    started_at timestamptz,
    lease_expires_at timestamptz,
    saved text,
    headers text
);

-- PostgreSQL replaces no function by one that takes or gives more. functions/ makes these again, in
-- the same transaction.
drop function if exists {schema}.claim(
    uuid, text[], integer, double precision, boolean, text, integer, timestamptz, uuid, text[], integer[], bigint, bigint);
drop function if exists {schema}.claim_named(uuid, text[], uuid, double precision, text[], integer[], bigint);
drop function if exists {schema}.claim_apart(uuid, text[], integer, double precision, text[], integer[], bigint);
drop function if exists {schema}.claim_by_type(
    uuid, text, integer, integer, double precision, text[], integer[], bigint, bigint, boolean, timestamptz, bytea, integer);
