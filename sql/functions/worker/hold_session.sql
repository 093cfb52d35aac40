-- hold_session: have the session that calls this speak for a worker's life, for as long as it lasts.
--
-- Out:    whether it does. False: the worker's row is gone, or others have given the worker up; it has lost what it held and registers.
-- Locks:  an advisory lock for the session, never waited for; the worker's row, for which whoever gives the worker up is waited for.
--
-- The lock is the one named after the worker, if it can be had. Its own former session may still hold it, a ghost: a partition that the
-- server has not noticed. So may anybody who can connect. The ghost is ended, where that is allowed, for nobody needs it any more, and
-- this session takes a lock of which nobody can know the key. The naive one waits in pg_advisory_lock for as long as the ghost lives.
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

-- backend_lives: whether a backend is there that is the one registered, and not another that was given its number.
-- The start is shown to members of the backend's role only; to others, number and role have to do.
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
