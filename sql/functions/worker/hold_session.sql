-- hold_session: have the calling session speak for a worker's life, for as long as the session
-- lasts.
--
-- Out:    whether it speaks. False: the worker's row is gone, or others have given the worker up.
--         Then the worker has lost what it held, and registers anew.
-- Locks:  an advisory lock for the session, never waited for; the worker's row. If a watcher is
--         giving the worker up, this call waits for it there.
--
-- The lock is the one named after the worker, if it can be had. The worker's own former session may
-- still hold it, as a ghost: the network is cut, and the server has not noticed. Or any role that
-- can connect may hold it. The ghost is ended, if that is allowed, for the worker does not need it
-- any more. Then this session takes a lock whose key nobody can know.
--
-- Naively: wait in pg_advisory_lock. That lasts as long as the ghost lives.
create or replace function {schema}.hold_session(worker_id uuid) returns boolean
language plpgsql volatile
as $$
#variable_conflict use_column
declare
    lock_key bigint := {schema}.session_key(hold_session.worker_id);
begin
    begin
        perform pg_terminate_backend(w.session_pid)
        from {schema}.worker_heartbeats as w
        where w.worker_id = hold_session.worker_id and w.session_pid <> pg_backend_pid()
          and {schema}.backend_lives(w.session_pid, w.session_started_at, w.session_role::bigint);
    exception when insufficient_privilege then
        null;
    end;
    while not pg_try_advisory_lock(lock_key) loop
        lock_key := ('x' || left(replace(gen_random_uuid()::text, '-', ''), 16))::bit(64)::bigint;
    end loop;
    update {schema}.worker_heartbeats as w
    set has_session = true, session_pid = pg_backend_pid(), session_started_at = a.backend_start, session_role = a.usesysid,
        session_lock = lock_key, session_lost_at = null, last_beat_at = {schema}.clock()
    from pg_stat_get_activity(pg_backend_pid()) as a
    where w.worker_id = hold_session.worker_id and w.dead_since is null;
    return found;
end
$$;

-- backend_lives: whether the backend that was registered is still there. The system may have given
-- its number to another one.
--
-- The start is shown only to members of the backend's role. For others, number and role have to do.
create or replace function {schema}.backend_lives(with_pid integer, started_at timestamptz, of_role bigint) returns boolean
language sql volatile
as $$
    select exists (
        select from pg_stat_get_activity(with_pid) as a
        where a.pid = with_pid and a.usesysid::bigint = of_role and coalesce(a.backend_start = started_at, true))
$$;

-- session_key: the advisory lock named after a worker.
create or replace function {schema}.session_key(worker_id uuid) returns bigint
language sql immutable
as $$ select hashtextextended({schema_text} || worker_id::text, 0) $$;
