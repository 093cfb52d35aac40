-- wake: tell sleepers of one queue of `jobs` jobs due at `due_at`. See runtime/sleep.py.
--
-- Two at the least: one may be on its way out. The rest follow by themselves, for a claim that leaves due work behind
-- wakes others (claim.sql). Whoever has promised to look before that time anyway is left alone; a promise whose time has
-- passed counts for nothing. Under repeatable read the list of sleepers may be as old as the transaction, so there
-- everybody is told.
--
-- `job_id` is the one it is about, when there is one, which a worker may take by its key (runtime/shortcuts.py). A transaction names the
-- first that is due, and no more: the wake-ups for all others are alike, so that PostgreSQL merges them.
-- `job_type` is what the jobs are; sleepers that have no handler for it are left alone. Null: it may be anything.
-- Its earlier forms: beside this one, a call that leaves the last arguments out would fit both.
drop function if exists {schema}.wake(text, timestamptz, bigint);
drop function if exists {schema}.wake(text, timestamptz, bigint, text);
create or replace function {schema}.wake(
    queue_name text, due_at timestamptz, jobs bigint, job_id text default null, job_type text default null)
returns void
language plpgsql volatile
as $$
#variable_conflict use_column
declare
    time_now timestamptz := {schema}.clock();
begin
    if current_setting('transaction_isolation') <> 'read committed' then
        perform pg_notify({schema_text} || '_work', wake.queue_name);
        return;
    end if;
    if due_at > time_now or current_setting('pgnotifyq.has_named', true) = 'yes' then
        wake.job_id := null;
    elsif wake.job_id is not null then
        perform set_config('pgnotifyq.has_named', 'yes', true);
    end if;
    perform pg_notify({schema}.worker_channel(s.worker_id), concat_ws(' ', 'work', wake.queue_name, wake.job_id))
    from (
        select sleeper.worker_id
        from {schema}.sleepers as sleeper
        where sleeper.queue_name = wake.queue_name
          and (due_at <= time_now or sleeper.expects_at > due_at or sleeper.expects_at <= time_now)
          and (wake.job_type is null or sleeper.job_types is null or wake.job_type = any (sleeper.job_types))
        order by random()
        limit greatest(2, least(jobs, 64))
    ) as s;
end
$$;

-- wake_able: wake sleepers of one queue that have a handler for a job that is due there, if there is such a job.
--
-- Naively: wake two of the queue's sleepers whenever something is due. Where the head of a queue is full of jobs that they have no
-- handlers for, each claim of a full worker would wake them in vain, and whoever has a handler for what stands behind, never.
create or replace function {schema}.wake_able(queue_name text, but_not uuid default null) returns void
language plpgsql volatile
as $$
#variable_conflict use_column
declare
    sleepers_max constant integer := 8;  -- asked at each call; the next call asks others
    sleeper record;
    kind text;
begin
    if not {schema}.has_due(wake_able.queue_name) then
        return;
    end if;
    for sleeper in
        select s.job_types
        from {schema}.sleepers as s
        where s.queue_name = wake_able.queue_name and s.worker_id is distinct from but_not
        order by random()
        limit sleepers_max
    loop
        kind := {schema}.due_type(wake_able.queue_name, sleeper.job_types);
        if kind is not null or sleeper.job_types is null then
            perform {schema}.wake(wake_able.queue_name, {schema}.clock(), 1, null, kind);
            return;
        end if;
    end loop;
end
$$;
