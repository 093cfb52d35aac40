-- workers: the worker processes, the oldest first, with what they hold.
with workers as materialized (
    select w.*, {schema}.is_alive(w.worker_id) as is_alive from {schema}.worker_heartbeats as w
)
select w.worker_id, w.host, w.pid, w.queues, w.slots, w.version, w.started_at, w.last_beat_at,
    case when w.is_alive then w.state else 'gone' end as state,
    w.is_alive,
    (select count(*) from {schema}.jobs as j where j.is_held and j.locked_by = w.worker_id) as running,
    case when w.has_session then 'push' else 'polling' end as listening,
    exists (select from {schema}.sleepers as s where s.worker_id = w.worker_id) as is_asleep
from workers as w
order by w.started_at, w.worker_id
