-- workers: the worker processes, with what they hold. A session lock that could be had is a process that is gone.
select w.worker_id, w.host, w.pid, w.queues, w.slots, w.version, w.started_at, w.last_beat_at,
    case
        when w.has_session and pg_try_advisory_xact_lock_shared({schema}.session_key(w.worker_id)) then 'gone'
        else w.state end as state,
    (select count(*) from {schema}.jobs as j where j.is_held and j.locked_by = w.worker_id) as running,
    case when w.has_session then 'push' else 'polling' end as listening,
    exists (select from {schema}.sleepers as s where s.worker_id = w.worker_id) as is_asleep
from {schema}.worker_heartbeats as w
order by w.started_at
