-- explain: why a job is where it is: what it waits for, who holds it, and who could run it. One
-- row, or none.
-- Index: jobs_pkey; jobs_claimable for the jobs before it, of which at most 1,000 are counted.
with found as materialized (
    select j.*, c.now
    from {schema}.jobs as j, (select {schema}.clock() as now offset 0) as c
    where j.id = $1
), workers as materialized (
    select w.slots, (select count(*) from {schema}.jobs as j where j.is_held and j.locked_by = w.worker_id) as running
    from {schema}.worker_heartbeats as w
    where w.state = 'running'
      and (select f.queue_name from found as f) = any (w.queues)
      and (exists (select from {schema}.handlers as h
                   where h.worker_id = w.worker_id and h.job_type = (select f.job_type from found as f))
           or not exists (select from {schema}.handlers as h where h.worker_id = w.worker_id))
      and {schema}.is_alive(w.worker_id)
)
select
    {schema}.label(f.status, f.is_held, f.attempts, f.scheduled_at, f.now) as label,
    case when f.status = 'pending' then {schema}.seconds_until(f.scheduled_at, f.now) end as due_in_seconds,
    {schema}.seconds_until(f.lease_expires_at, f.now) as lease_seconds_left,
    case when f.status = 'pending' then (
        select count(*) from (
            select from {schema}.jobs as j
            where j.is_claimable and j.queue_name = f.queue_name and j.scheduled_at <= f.now
              and (j.priority > f.priority
                   or (j.priority = f.priority and (j.scheduled_at, j.id) < (f.scheduled_at, f.id)))
            limit 1000) as before) end as jobs_before,
    (select count(*) from workers as w) as workers,
    case when not exists (select from workers as w) then (
        select count(*) from {schema}.worker_heartbeats as w
        where w.state = 'running' and f.queue_name = any (w.queues) and {schema}.is_alive(w.worker_id)) else 0 end
        as workers_without_handler,
    (select coalesce(sum(greatest(w.slots - w.running, 0)), 0)::bigint from workers as w) as slots_free,
    f.queue_name, f.job_type, f.attempts, f.max_attempts, f.error_message,
    f.suspicion is not null and f.suspicion = 'parked' as is_parked,
    case when f.is_held then -{schema}.seconds_until(f.started_at, f.now) end as held_for_seconds,
    h.host as held_on_host, h.pid as held_by_pid,
    case when f.is_held then coalesce({schema}.is_alive(f.locked_by), false) end as is_holder_alive,
    -{schema}.seconds_until(f.completed_at, f.now) as ended_for_seconds,
    t.verb as trouble_with, t.error_message as trouble, t.tries as trouble_tries,
    {schema}.seconds_until(t.look_at, f.now) as trouble_look_in_seconds,
    p.scope as paused, p.who as paused_by, p.why as paused_why, -{schema}.seconds_until(p.paused_at, f.now) as paused_for_seconds,
    f.waits_for, case when f.status = 'pending' and f.waits_for is not null then {schema}.seconds_until(f.due_after_wait, f.now) end
        as due_after_wait_in_seconds
from found as f
left join {schema}.worker_heartbeats as h on h.worker_id = f.locked_by
left join {schema}.job_troubles as t on t.org_id = f.org_id and t.job_id = f.id
left join lateral (
    select p.*
    from {schema}.pauses as p
    where f.status = 'pending'
      and (p.scope = 'everything' or (p.scope = 'queue' and p.name = f.queue_name) or (p.scope = 'job_type' and p.name = f.job_type))
    order by p.scope
    limit 1
) as p on true
