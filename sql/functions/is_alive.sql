-- is_alive: whether a worker process shows a sign of life.
--
-- A worker whose listener session holds its lock is alive as long as that session is. Of one without a session (behind a pooler in
-- transaction mode) only its beats speak: it is given up after three leases, as watch() does.
-- The lock is looked up and not tried: trying takes it, and whoever looks within a long transaction would keep it.
create or replace function {schema}.is_alive(worker uuid) returns boolean
language plpgsql volatile
as $$
begin
    return (select coalesce(bool_or(case
        when w.has_session then exists (
            select from pg_locks as l
            where l.locktype = 'advisory' and l.objsubid = 1 and l.mode = 'ExclusiveLock' and l.granted
              and l.database = (select d.oid from pg_database as d where d.datname = current_database())
              and ((l.classid::bigint << 32) | l.objid::bigint) = {schema}.session_key(w.worker_id))
        else w.last_beat_at >= {schema}.clock() - make_interval(secs => 3 * w.lease_seconds) end), false)
    from {schema}.worker_heartbeats as w
    where w.worker_id = is_alive.worker);
end
$$;
