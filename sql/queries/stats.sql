-- stats: what each queue holds, by name. Reads every job: for people and dashboards, not for every
-- second.
with counted as (
    select l.queue_name,
        count(*) filter (where l.label = 'pending') as pending,
        count(*) filter (where l.label = 'scheduled') as scheduled,
        count(*) filter (where l.label = 'retrying') as retrying,
        count(*) filter (where l.label = 'running') as running,
        count(*) filter (where l.label = 'stopping') as stopping,
        count(*) filter (where l.label = 'completed') as completed,
        count(*) filter (where l.label = 'cancelled') as cancelled,
        -{schema}.seconds_until(min(l.scheduled_at) filter (where l.label = 'pending'), max(l.now)) as oldest_due_seconds
    from (
        select j.queue_name, j.scheduled_at, c.now,
            {schema}.label(j.status, j.is_held, j.attempts, j.scheduled_at, c.now) as label
        from {schema}.jobs as j, (select {schema}.clock() as now offset 0) as c
    ) as l
    group by l.queue_name
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
