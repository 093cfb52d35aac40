-- Unique: what a job's key is unique among, for how long, and what follows if it is taken.
--
-- The new index on keys is built, so the table of jobs is read once. Nothing is rewritten, and what
-- the release before says and asks goes on: a `unique_key` alone means what it meant.

-- A domain, and not a CHECK of the table: the table's are read anew in every statement. It comes
-- without its rule first, for else PostgreSQL would read the whole table.
create domain {schema}.unique_while as text;
create domain {schema}.unique_scope as text;

alter table {schema}.jobs
    -- What the key is unique among. Null: the tenant's jobs of its type. '*': all jobs of the
    -- tenant.
    add column unique_scope {schema}.unique_scope,
    -- How long the job holds its key. Null: until it has ended. 'pending': until it first starts.
    add column unique_while {schema}.unique_while,
    -- It holds its key until this time, whatever becomes of it, unless it is cancelled or dies.
    add column unique_until timestamptz,
    -- It had the key and has it no more: another job got it while this one ran, or after its
    -- period.
    add column key_passed_on boolean,
    -- The job whose handler has to end before this one may start. It had the same key. Until then
    -- `scheduled_at` is infinity, and `due_after_wait` says when the job is due otherwise.
    add column waits_for uuid,
    add column due_after_wait timestamptz;
alter domain {schema}.unique_while add constraint while_is_known check (value = 'pending') not valid;
alter domain {schema}.unique_scope add constraint scope_is_known check (value = '*') not valid;

alter table {schema}.dead_letter_jobs
    add column unique_scope text,
    add column unique_while text,
    add column unique_until timestamptz;

-- From now on a job that was cancelled holds its key while its handler is stopping. Those that stop
-- now do not: another job may have their key.
update {schema}.jobs as j
set key_passed_on = true
where j.is_held and j.status = 'cancelled' and j.unique_key is not null;

-- At most one job a key. These hold theirs (functions/enqueue/key_holder.sql says the same): a job
-- that waits or runs; one that is unique only while it is pending, until it first starts; one whose
-- period is not over, or was not found to be; one that was cancelled while it waited for another to
-- end, until that has ended.
--
-- The conditions name no column that a renewal or a progress writes: those stay heap-only updates.
--
-- The column that the former index read goes with it: only functions knew of it, and a stored
-- column that is generated costs each insert what the new index does.
drop index {schema}.jobs_unique_key;
alter table {schema}.jobs drop column holds_unique_key;
create unique index jobs_unique_key on {schema}.jobs (org_id, (coalesce(unique_scope::text, job_type::text)), unique_key)
where unique_key is not null and key_passed_on is null
  and (unique_until is not null or waits_for is not null or (is_claimable and (started_at is null or unique_while is null))
       or (is_held and unique_while is null));

-- A job that is cancelled gives up its period. Otherwise as before (0013).
create or replace function {schema}.note_cancel() returns trigger
language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $$
begin
    new.completed_at := coalesce(new.completed_at, {schema}.clock());
    new.unique_until := null;
    if new.current_execution_id is not null then
        perform {schema}.notify(
            {schema}.worker_channel(new.locked_by), 'cancel ' || new.id || ' ' || new.current_execution_id);
    elsif new.awaited then
        perform {schema}.announce_end(new.id);
    end if;
    if old.status = 'pending' and pg_relation_size('{schema}.hooks') > 0 then
        perform {schema}.fire_hook(new);
    end if;
    return new;
end
$$;

-- What is unique is said by who enqueues, within bounds. Otherwise as before (0013).
create or replace function {schema}.is_as_enqueued(job {schema}.jobs) returns boolean
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
begin
    return job.status = 'pending' and job.attempts = 0 and not job.awaited and job.enqueued_by = current_user
        and num_nonnulls(job.locked_by, job.current_execution_id, job.lease_expires_at, job.started_at, job.completed_at,
            job.error_message, job.result, job.progress, job.progress_message, job.suspicion, job.suspected_with,
            job.key_passed_on, job.waits_for, job.due_after_wait) = 0
        and job.job_type ~ '^[A-Za-z0-9_][A-Za-z0-9_.:-]{{0,126}}$'
        and job.queue_name ~ '^[A-Za-z0-9_][A-Za-z0-9_.:-]{{0,62}}$'
        and (not job.queue_not_said or job.queue_name = 'default')
        and coalesce(job.max_attempts, 1) between 1 and 1000
        and coalesce(length(job.unique_key), 0) <= 2000
        and coalesce(job.unique_until, clock_timestamp()) < clock_timestamp() + interval '3670 days'
        and (job.unique_key is not null or num_nonnulls(job.unique_scope, job.unique_while, job.unique_until) = 0)
        and isfinite(job.scheduled_at) and extract(year from job.scheduled_at at time zone 'UTC') between 2 and 9998
        and (octet_length(job.payload::text) <= 1048576 or {schema}.compact_bytes(job.payload) <= 1048576)
        and job.created_at between clock_timestamp() - interval '1 day' and clock_timestamp() + interval '1 day'
        and substr(job.id::text, 15, 1) = '7'
        and abs(('x' || left(replace(job.id::text, '-', ''), 12))::bit(48)::bigint
            - extract(epoch from clock_timestamp()) * 1000) < 86400000;
end
$$;

-- PostgreSQL replaces no function by one that takes more, or whose parameters have other names.
-- functions/ makes these again, in the same transaction.
drop function if exists {schema}.key_holder(uuid, text, text);
drop function if exists {schema}.enqueue(text, jsonb, uuid, text, integer, timestamptz, integer, text, jsonb);
