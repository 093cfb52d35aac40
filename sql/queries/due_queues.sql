-- due_queues: the queues that hold due jobs, the longest waiting first, and how many live workers
-- take them. Jobs that were put aside, suspects whose turn has not come, and jobs that are paused
-- wait for something else.
with workers as materialized (
    select w.queues from {schema}.worker_heartbeats as w where {schema}.is_alive(w.worker_id)
)
select j.queue_name, count(*) as jobs,
    coalesce(extract(epoch from c.now - min(j.scheduled_at) filter (where isfinite(j.scheduled_at)))::float8, 0) as waiting_seconds,
    (select count(*) from workers as w where j.queue_name = any (w.queues)) as workers
from {schema}.jobs as j, (select {schema}.clock() as now offset 0) as c
where j.is_claimable and j.scheduled_at <= c.now
  and not exists (
      select from {schema}.job_troubles as t where t.org_id = j.org_id and t.job_id = j.id and t.look_at > c.now)
  and not exists (
      select from {schema}.pauses as p
      where p.scope = 'everything' or (p.scope = 'queue' and p.name = j.queue_name)
         or (p.scope = 'job_type' and p.name = j.job_type))
group by j.queue_name, c.now
order by 3 desc, 1
limit 20
