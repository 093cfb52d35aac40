-- is_idle: whether no job of some queues is due or held. For tests; reads jobs_claimable and
-- jobs_held.
select not exists (
    select from {schema}.jobs as j, (select {schema}.clock() as now offset 0) as c
    where j.queue_name = any ($1::text[])
      and ((j.is_claimable and j.scheduled_at <= c.now) or j.is_held))
