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

-- The release before takes the last column of a claim for the headers. So the state comes before
-- them, and a type gets new attributes at its end alone.
alter type {schema}.claimed_job rename attribute headers to saved;
alter type {schema}.claimed_job add attribute headers text;

-- PostgreSQL replaces no function by one that takes or gives more. functions/ makes these again, in
-- the same transaction.
drop function if exists {schema}.claim(
    uuid, text[], integer, double precision, boolean, text, integer, timestamptz, uuid, text[], integer[], bigint, bigint);
