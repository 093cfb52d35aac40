-- stats: what each queue holds, by name. Reads every job: for people and dashboards, not for every second.
with counted as (
    select j.queue_name,
        count(*) filter (where j.status = 'pending' and j.scheduled_at <= c.now) as pending,
        count(*) filter (where j.status = 'pending' and j.scheduled_at > c.now and j.attempts = 0) as scheduled,
        count(*) filter (where j.status = 'pending' and j.scheduled_at > c.now and j.attempts > 0) as retrying,
        count(*) filter (where j.status = 'running') as running,
        count(*) filter (where j.status = 'cancelled' and j.is_held) as stopping,
        count(*) filter (where j.status = 'completed') as completed,
        count(*) filter (where j.status = 'cancelled' and not j.is_held) as cancelled,
        -{schema}.seconds_until(min(j.scheduled_at) filter (where j.status = 'pending' and j.scheduled_at <= c.now), min(c.now))
            as oldest_due_seconds
    from {schema}.jobs as j, (select {schema}.clock() as now offset 0) as c
    group by j.queue_name
), dead as (
    select d.queue_name, count(*) as dead from {schema}.dead_letter_jobs as d group by d.queue_name
)
select coalesce(c.queue_name, d.queue_name) as queue_name,
    coalesce(c.pending, 0) as pending, coalesce(c.scheduled, 0) as scheduled, coalesce(c.retrying, 0) as retrying,
    coalesce(c.running, 0) as running, coalesce(c.stopping, 0) as stopping, coalesce(c.completed, 0) as completed,
    coalesce(c.cancelled, 0) as cancelled, coalesce(d.dead, 0) as dead, c.oldest_due_seconds
from counted as c
full join dead as d on d.queue_name = c.queue_name
order by 1
