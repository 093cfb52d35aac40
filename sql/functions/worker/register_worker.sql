-- register_worker: publish a worker that has come, or has come back. What others thought of it is
-- forgotten.
--
-- A session speaks for the worker after hold_session() has said so. `has_session` is for workers of
-- an older release: they take the lock named after them first.
--
-- Their form of this function has no grace, and is dropped. Otherwise a call without a grace would
-- fit both.
drop function if exists {schema}.register_worker(uuid, text, integer, text[], integer, text, boolean, double precision);
create or replace function {schema}.register_worker(
    worker_id uuid, host text, pid integer, queue_names text[], slots integer, version text,
    has_session boolean, lease_seconds double precision, grace_seconds double precision default null)
returns void
language sql volatile
as $$
    insert into {schema}.worker_heartbeats as w (
        worker_id, host, pid, queues, slots, version, started_at, last_beat_at, has_session, lease_seconds,
        grace_seconds)
    values (
        register_worker.worker_id, register_worker.host, register_worker.pid, register_worker.queue_names,
        register_worker.slots, register_worker.version, {schema}.clock(), {schema}.clock(), register_worker.has_session,
        register_worker.lease_seconds, register_worker.grace_seconds)
    on conflict (worker_id) do update
    set last_beat_at = excluded.last_beat_at, has_session = excluded.has_session, grace_seconds = excluded.grace_seconds,
        session_lost_at = null, dead_since = null;
    -- Workers that were alone begin to watch. No queue's name begins with a plus.
    select {schema}.notify({schema_text} || '_work', '+company');
$$;

-- unregister_worker: a worker has ended, and nothing of it stays. Sleepers of its queues look once:
-- a wake-up may have been on its way to the worker that left.
create or replace function {schema}.unregister_worker(worker_id uuid) returns void
language plpgsql volatile
as $$
#variable_conflict use_column
begin
    delete from {schema}.sleepers as s where s.worker_id = unregister_worker.worker_id;
    perform {schema}.wake(q.name, {schema}.clock(), 1), {schema}.wake_able(q.name, unregister_worker.worker_id)
    from {schema}.worker_heartbeats as w, unnest(w.queues) as q(name)
    where w.worker_id = unregister_worker.worker_id;
    delete from {schema}.worker_heartbeats as w where w.worker_id = unregister_worker.worker_id;
end
$$;
