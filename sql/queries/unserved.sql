-- unserved: job types that are due in a queue, and that no live worker of that queue has a handler
-- for. They wait, uncharged.
-- Out: the queue, the type, how many wait (counted up to 1,000), and for how long the first has.
-- Index: jobs_claimable_by_type: one look a type, so it reads little whatever waits.
with recursive kinds as (
    (select j.queue_name, j.job_type, j.queue_name || ' ' || j.job_type as key
     from {schema}.jobs as j where j.is_claimable order by 3 limit 1)
    union all
    select n.queue_name, n.job_type, n.key
    from kinds as k
    cross join lateral (
        select j.queue_name, j.job_type, j.queue_name || ' ' || j.job_type as key
        from {schema}.jobs as j
        where j.is_claimable and j.queue_name || ' ' || j.job_type > k.key
        order by 3
        limit 1
    ) as n
), live as materialized (
    select w.worker_id, w.queues, exists (select from {schema}.handlers as h where h.worker_id = w.worker_id) as publishes
    from {schema}.worker_heartbeats as w
    where w.state = 'running' and {schema}.is_alive(w.worker_id)
), waiting as (
    select k.queue_name, k.job_type
    from kinds as k
    where not exists (
        select from live as w
        where k.queue_name = any (w.queues)
          and (not w.publishes
               or exists (select from {schema}.handlers as h where h.worker_id = w.worker_id and h.job_type = k.job_type)))
)
select w.queue_name::text as queue_name, w.job_type::text as job_type, d.jobs,
    -{schema}.seconds_until(d.first_at, c.now) as oldest_due_seconds
from waiting as w
cross join (select {schema}.clock() as now offset 0) as c
cross join lateral (
    select count(*) as jobs, min(f.scheduled_at) as first_at
    from (
        select j.scheduled_at
        from {schema}.jobs as j
        where j.is_claimable and j.queue_name || ' ' || j.job_type = w.queue_name || ' ' || w.job_type and j.scheduled_at <= c.now
        limit 1000
    ) as f
) as d
where d.jobs > 0
order by 1, 2
