-- count_jobs: how many jobs a tenant has. Every filter but the tenant may be null. In: tenant,
-- label (a status or a derived one), queue, job type.
select count(*)
from {schema}.jobs as j, (select {schema}.clock() as now offset 0) as c
where j.org_id = $1
  and ($2::text is null or $2 = {schema}.label(j.status, j.is_held, j.attempts, j.scheduled_at, c.now))
  and ($3::text is null or j.queue_name = $3)
  and ($4::text is null or j.job_type = $4)
