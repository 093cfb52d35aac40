-- wake: tell sleepers of a queue that `jobs` jobs fall due there at `due_at`. The protocol:
-- pgnotifyq/runtime/sleep.py.
--
-- In:     job_id    the job, if there is one only: a worker may take it by its key
--                   (runtime/shortcuts.py). A transaction names the first job that is due, and no
--                   more. The wake-ups for all others are alike, so PostgreSQL merges them.
--         job_type  the type of the jobs: sleepers that have no handler for it are left alone.
--                   Null: of any type.
--
-- At least two sleepers are told: one may be on its way out. The others follow by themselves: if a
-- claim leaves due work behind, it wakes others (claim.sql). A sleeper that has promised to look
-- before `due_at` is left alone. A promise whose time has passed does not count.
--
-- Under repeatable read the list of sleepers may be as old as the transaction. So there every
-- worker is told.
--
-- The earlier forms are dropped. Otherwise a call without the last arguments would fit both.
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
        perform {schema}.notify({schema_text} || '_work', wake.queue_name);
        return;
    end if;
    if due_at > time_now or current_setting('pgnotifyq.has_named', true) = 'yes' then
        wake.job_id := null;
    elsif wake.job_id is not null then
        perform set_config('pgnotifyq.has_named', 'yes', true);
    end if;
    perform {schema}.notify({schema}.worker_channel(s.worker_id), concat_ws(' ', 'work', wake.queue_name, wake.job_id))
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

-- wake_able: if a job is due in a queue, wake sleepers that have a handler for it.
--
-- Naively: wake two of the queue's sleepers whenever a job is due. But the head of a queue may be
-- full of jobs that these have no handlers for. Then each claim of a full worker would wake them in
-- vain. A sleeper with a handler for a job further behind would never be woken. What is paused
-- wakes nobody.
create or replace function {schema}.wake_able(queue_name text, but_not uuid default null) returns void
language plpgsql volatile
as $$
#variable_conflict use_column
declare
    sleepers_max constant integer := 8;  -- at each call; the next call asks others
    sleeper record;
    kind text;
    is_paused boolean;
begin
    if not {schema}.has_due(wake_able.queue_name) then
        return;
    end if;
    is_paused := pg_relation_size('{schema}.pauses') > 0;
    if is_paused and (
        select cardinality(a.queue_names) from {schema}.admit(array[wake_able.queue_name], null, null) as a) = 0
    then
        return;
    end if;
    for sleeper in
        select s.job_types
        from {schema}.sleepers as s
        where s.queue_name = wake_able.queue_name and s.worker_id is distinct from but_not
        order by random()
        limit sleepers_max
    loop
        if is_paused then
            select a.job_types into sleeper.job_types
            from {schema}.admit(array[wake_able.queue_name], sleeper.job_types, null) as a;
        end if;
        kind := {schema}.due_type(wake_able.queue_name, sleeper.job_types);
        if kind is not null or sleeper.job_types is null then
            perform {schema}.wake(wake_able.queue_name, {schema}.clock(), 1, null, kind);
            return;
        end if;
    end loop;
end
$$;
