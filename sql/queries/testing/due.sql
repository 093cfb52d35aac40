-- due: the queues that hold a job of some types that is due or held. For a program's tests.
-- In:    job types; queues, or null for all.
-- Out:   names of queues, in order.
-- Index: jobs_claimable, jobs_held. A test's database is small.
select distinct j.queue_name
from {schema}.jobs as j, (select {schema}.clock() as now offset 0) as c
where j.job_type = any ($1::text[])
  and ($2::text[] is null or j.queue_name = any ($2))
  and ((j.is_claimable and j.scheduled_at <= c.now) or j.is_held)
order by 1
