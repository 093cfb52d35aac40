-- Schedules: when jobs of a kind are enqueued. `next_at` is data: a worker that sleeps wakes at it.
-- Nothing here rewrites or reads a table, and what the release before says and asks goes on.

-- What a rule says: pgnotifyq/model/schedule.py. Workers read it; SQL does not.
create table {schema}.schedules (
    id uuid not null default gen_random_uuid(),
    org_id uuid not null default '00000000-0000-0000-0000-000000000000',
    name text not null,
    -- The program whose code has it. Null: somebody made it by hand.
    owner text,

    -- What is enqueued at each tick.
    job_type text not null,
    payload jsonb not null default '{{}}',
    queue_name text,
    priority integer not null default 0,
    max_attempts integer,

    -- When there are ticks; parts with semicolons in between.
    rule text not null,
    tz text not null default 'UTC',
    exclude text not null default '',
    -- What becomes of ticks that no worker was there for, and while the run before has not ended.
    missed text not null default 'last',
    window_seconds double precision,
    overlap text not null default 'skip',
    jitter_seconds double precision not null default 0,

    -- The next tick. Null: a worker has to find it. Infinity: there is none.
    next_at timestamptz,
    -- After a failure, the next try.
    retry_at timestamptz,
    -- When a worker has to see to it; null: now.
    due_at timestamptz generated always as (greatest(next_at, retry_at)) stored,
    -- Ticks up to then have been seen to.
    done_to timestamptz not null default {schema}.clock(),
    -- The last tick that was seen to.
    last_at timestamptz,
    -- Grows with each change of when there are ticks.
    version integer not null default 1,
    error_message text,

    paused_at timestamptz,
    who text,
    why text,
    -- Since when its owner's code does not have it any more.
    unlisted_at timestamptz,
    created_at timestamptz not null default {schema}.clock(),

    constraint schedules_pkey primary key (id),
    constraint one_schedule_of_a_name unique (org_id, name),
    constraint schedule_name_is_valid check (name ~ '^[A-Za-z0-9_][A-Za-z0-9_.:@/-]{{0,126}}$'),
    constraint schedule_job_type_is_valid check (job_type ~ '^[A-Za-z0-9_][A-Za-z0-9_.:-]{{0,126}}$'),
    constraint schedule_queue_is_valid check (queue_name ~ '^[A-Za-z0-9_][A-Za-z0-9_.:-]{{0,62}}$'),
    constraint schedule_priority_is_in_range check (priority between -32768 and 32767),
    constraint schedule_max_attempts_is_in_range check (max_attempts between 1 and 1000),
    constraint rule_is_said check (rule ~ '[^[:space:];]' and length(rule) + length(exclude) <= 10000),
    constraint tz_is_said check (tz <> '' and length(tz) <= 100),
    constraint missed_is_known check (missed in ('last', 'none', 'all')),
    constraint overlap_is_known check (overlap in ('skip', 'queue', 'cancel_running', 'allow')),
    constraint window_is_in_range check (window_seconds between 0 and 316224000),
    constraint jitter_is_in_range check (jitter_seconds between 0 and 316224000),
    constraint next_at_is_in_range check (least(next_at, retry_at, done_to) > '1900-01-01 00:00:00+00')
);
create index schedules_due on {schema}.schedules (due_at nulls first) where paused_at is null;

-- The ticks that were seen to: the index decides that each is, once.
create table {schema}.schedule_ticks (
    schedule_id uuid not null,
    tick timestamptz not null,
    org_id uuid not null default '00000000-0000-0000-0000-000000000000',
    -- The job that was enqueued for it. Null: none was, or none was yet.
    job_id uuid,
    -- open: its job may not have ended. waiting: for the run before to end. skipped: for that one
    -- had not ended. enqueued: nobody asks any more how it goes.
    state text not null default 'open',

    constraint schedule_ticks_pkey primary key (schedule_id, tick),
    constraint ticks_of_a_schedule foreign key (schedule_id) references {schema}.schedules (id) on delete cascade,
    constraint tick_state_is_known check (state in ('open', 'waiting', 'skipped', 'enqueued'))
);
create index schedule_ticks_unended on {schema}.schedule_ticks (schedule_id, tick) where state in ('open', 'waiting');
create index schedule_ticks_open on {schema}.schedule_ticks (job_id) where state = 'open';

do $do$
declare
    each text;
begin
    foreach each in array array['schedules', 'schedule_ticks'] loop
        execute format('alter table {schema}.%I enable row level security', each);
        execute format('alter table {schema}.%I force row level security', each);
        execute format(
            'create policy one_tenant on {schema}.%I'
            || ' using (not (select {schema}.is_confined()) or org_id = (select {schema}.current_org()))'
            || ' with check (not (select {schema}.is_confined()) or org_id = (select {schema}.current_org()))', each);
    end loop;
end
$do$;

-- A change of when there are ticks has a worker find the next one anew. So does the end of a pause:
-- what was paused is not missed.
create function {schema}.renew_schedule() returns trigger
language plpgsql
as $$
begin
    if (new.rule, new.tz, new.exclude) is distinct from (old.rule, old.tz, old.exclude)
        or (old.paused_at is not null and new.paused_at is null)
    then
        new.next_at := null;
        new.retry_at := null;
        new.error_message := null;
        new.done_to := {schema}.clock();
        new.version := old.version + 1;
    end if;
    return new;
end
$$;
create trigger schedule_is_renewed before update of rule, tz, exclude, paused_at on {schema}.schedules
for each row execute function {schema}.renew_schedule();

-- Workers sleep until the next tick that they know of. The message names no schedule: anybody may
-- listen.
create function {schema}.tell_schedule_change() returns trigger
language plpgsql
as $$
begin
    perform {schema}.notify({schema_text} || '_work', '+schedules');
    return null;
end
$$;
create trigger workers_are_told
after insert or update of rule, tz, exclude, missed, window_seconds, overlap, paused_at on {schema}.schedules
for each statement execute function {schema}.tell_schedule_change();

-- note_cancel: as before (0016). The end is announced by announce_end
-- (functions/end/await_job.sql), which also tells workers if the next run of a schedule waits.
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
