-- fall_asleep, wake_up: a worker publishes that it sleeps on its queues, or that it does not. The
-- protocol: pgnotifyq/runtime/sleep.py.
--
-- `job_types` are the types that the worker has handlers for; null: all that its queues hold.
--
-- The earlier form is dropped. Otherwise a call without the last argument would fit both.
drop function if exists {schema}.fall_asleep(uuid, text[]);
create or replace function {schema}.fall_asleep(worker_id uuid, queue_names text[], job_types text[] default null) returns void
language sql volatile
set synchronous_commit = off
as $$
    insert into {schema}.sleepers as s (queue_name, worker_id, job_types)
    select distinct q.name, fall_asleep.worker_id, fall_asleep.job_types from unnest(queue_names) as q(name)
    on conflict (queue_name, worker_id) do update set job_types = excluded.job_types
    where s.job_types is distinct from excluded.job_types
$$;

-- If a wake-up finds the worker full, the worker stops sleeping and hands the wake-up on: `hand_on`
-- names its queues.
create or replace function {schema}.wake_up(worker_id uuid, hand_on text[] default '{{}}') returns void
language plpgsql volatile
as $$
#variable_conflict use_column
begin
    perform set_config('synchronous_commit', 'off', true);
    delete from {schema}.sleepers as s where s.worker_id = wake_up.worker_id;
    perform {schema}.wake_able(q.name, wake_up.worker_id)
    from unnest(hand_on) as q(name);
end
$$;

-- forget_sleepers: take sleepers off the list that hear nothing any more, and have the others look
-- at those queues.
--
-- In:     worker_id   the worker that looks; its own rows stay
-- Locks:  the rows of sleepers that go, `skip locked`; the advisory lock of each session that is
--         gone, shared, until the transaction ends.
--
-- A sleeper that hears nothing swallows the wake-ups that are sent to it: wake() picks two sleepers
-- for a job, and both may be such. It may be a worker that was killed a moment ago, a row that
-- somebody forged, or a row that a restored dump brought back.
--
-- A worker publishes itself only while its listener's session holds the worker's lock. So if the
-- lock can be had, no session listens for that sleeper. If the worker comes back with a new
-- session, it publishes itself anew.
--
-- Naively: go by the row in worker_heartbeats. But that row may be deleted while its worker lives
-- and hears. Or go by the lock alone. But any role that may connect can hold the lock of a worker
-- that is gone: so a session whose backend is gone hears nothing, whoever holds its lock.
--
-- The swallowed wake-up may have been for a job of the future. So all sleepers of such a queue look
-- once, 64 of them at most.
create or replace function {schema}.forget_sleepers(worker_id uuid) returns void
language plpgsql volatile
as $$
#variable_conflict use_column
declare
    queues text[];
begin
    with asleep as materialized (
        select distinct s.worker_id
        from {schema}.sleepers as s
        where s.worker_id <> forget_sleepers.worker_id
    ), deaf as materialized (
        select a.worker_id
        from asleep as a
        left join {schema}.worker_heartbeats as w on w.worker_id = a.worker_id
        where case
            when w.session_pid is not null
                and not {schema}.backend_lives(w.session_pid, w.session_started_at, w.session_role::bigint) then true
            else pg_try_advisory_xact_lock_shared(coalesce(w.session_lock, {schema}.session_key(a.worker_id))) end
    ), locked as materialized (
        select s.queue_name, s.worker_id
        from {schema}.sleepers as s
        join deaf as d on d.worker_id = s.worker_id
        for update of s skip locked
    ), forgotten as (
        delete from {schema}.sleepers as s
        using locked as l
        where s.queue_name = l.queue_name and s.worker_id = l.worker_id
        returning s.queue_name
    )
    select array_agg(distinct f.queue_name) into queues from forgotten as f;
    -- In a statement of its own: it does not see the rows that have gone.
    perform {schema}.wake(q.name, {schema}.clock(), 64)
    from unnest(queues) as q(name);
end
$$;
