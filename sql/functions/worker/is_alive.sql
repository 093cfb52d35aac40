-- is_alive: whether a worker process shows a sign of life: its session, or a beat.
--
-- If a session speaks for the worker, the worker is alive as long as that session is, or while its
-- last beat is younger than its grace. If no session does (behind a pooler in transaction mode),
-- only its beats count: the worker is given up after three leases, as in watch().
--
-- The lock is looked up in pg_locks, and not tried. To try a lock is to take it, and a caller in a
-- long transaction would keep it. It counts who holds the lock: any role that may connect can take
-- one (watch.sql, session_lives).
create or replace function {schema}.is_alive(worker_id uuid) returns boolean
language plpgsql volatile
as $$
#variable_conflict use_column
begin
    return (select coalesce(bool_or(case
        when not w.has_session then w.last_beat_at >= {schema}.clock() - make_interval(secs => 3 * w.lease_seconds)
        when w.dead_since is not null then false
        when w.last_beat_at >= {schema}.clock() - make_interval(secs => w.grace_seconds) then true
        else exists (
            select from pg_locks as l
            where l.locktype = 'advisory' and l.objsubid = 1 and l.mode = 'ExclusiveLock' and l.granted
              and l.database = (select d.oid from pg_database as d where d.datname = current_database())
              and ((l.classid::bigint << 32) | l.objid::bigint) = coalesce(w.session_lock, {schema}.session_key(w.worker_id))
              and (w.session_pid is null
                   or (l.pid = w.session_pid
                       and {schema}.backend_lives(w.session_pid, w.session_started_at, w.session_role::bigint)))) end), false)
    from {schema}.worker_heartbeats as w
    where w.worker_id = is_alive.worker_id);
end
$$;
