-- A job has headers: what goes with it and is not its payload, such as a trace's context, the id of
-- a request, a language. A JSON object; null if there is none.
--
-- Nothing here rewrites or reads a table, and what the release before says and asks goes on: new
-- columns come last, in tables, in types and in what functions give.

-- The bound is of the text, as a worker gets it. The doors admit 8 KiB of compact JSON
-- (model/headers.py); PostgreSQL adds a space behind each comma and colon, and writes out numbers
-- such as 1e300. A domain, and not a CHECK of the table: the table's are read anew in every
-- statement. It comes without its rules first, for else PostgreSQL would read the whole table.
create domain {schema}.headers as jsonb;
alter table {schema}.jobs add column headers {schema}.headers;
alter domain {schema}.headers
    add constraint headers_are_an_object check (jsonb_typeof(value) = 'object') not valid;
alter domain {schema}.headers
    add constraint headers_are_short check (octet_length(value::text) <= 16384) not valid;
alter table {schema}.dead_letter_jobs add column headers jsonb;

alter type {schema}.claimed_job add attribute headers text;

-- PostgreSQL replaces no function by one that takes or gives more. functions/ makes these again, in
-- the same transaction.
drop function if exists {schema}.claim(
    uuid, text[], integer, double precision, boolean, text, integer, timestamptz, uuid, text[], integer[], bigint, bigint);
drop function if exists {schema}.enqueue_claimed(
    uuid, uuid, uuid, double precision, uuid, text, text, text, smallint, integer);
drop function if exists {schema}.enqueue_many(
    uuid[], uuid[], text[], text[], text[], smallint[], timestamptz[], double precision[], integer[], text[]);
drop function if exists {schema}.enqueue(text, jsonb, uuid, text, integer, timestamptz, integer, text);

-- What is to run when a job of a type has ended, or is to be tried again: a job of the type
-- `hook_type`, enqueued by the statement that ends it (functions/end/hooks.sql). A worker publishes
-- the hooks of its registry. They stay when it goes, for jobs also end while no worker lives.
create table {schema}.hooks (
    job_type {schema}.job_type not null,
    ending text not null,
    hook_type {schema}.job_type not null,

    constraint hooks_pkey primary key (job_type, ending, hook_type),
    constraint ending_is_known check (ending in ('completed', 'retried', 'dead', 'cancelled'))
);
do $do$
begin
    if exists (select from pg_roles where rolname = {tenant_role_text}) then
        grant select on {schema}.hooks to {tenant_role};
    end if;
end
$do$;

-- A pending job that is cancelled ends here, whoever says it. Otherwise as before (0002).
create or replace function {schema}.note_cancel() returns trigger
language plpgsql
as $$
begin
    new.completed_at := coalesce(new.completed_at, {schema}.clock());
    if new.current_execution_id is not null then
        perform pg_notify(
            {schema}.worker_channel(new.locked_by), 'cancel ' || new.id || ' ' || new.current_execution_id);
    elsif new.awaited then
        perform pg_notify({schema_text} || '_finished', new.id::text);
    end if;
    if old.status = 'pending' and pg_relation_size('{schema}.hooks') > 0 then
        perform {schema}.fire_hook(new);
    end if;
    return new;
end
$$;

