-- jobs: some jobs for people, newest first. Every filter may be null. `label` is a status or a derived one.
-- Progress is stored in four bytes, whose shortest text is what was reported: 0.3, and not 0.30000001.
-- In: id, label, queue, job type, tenant, limit.
select j.id, j.org_id, j.queue_name, j.job_type, j.payload, j.priority, j.status, j.scheduled_at, j.attempts, j.max_attempts,
    j.locked_by, j.current_execution_id, j.lease_expires_at, j.started_at, j.completed_at, j.error_message, j.result,
    j.progress::text::float8 as progress, j.progress_message, j.unique_key, j.created_at,
    {schema}.label(j.status, j.is_held, j.attempts, j.scheduled_at, c.now) as label
from {schema}.jobs as j, (select {schema}.clock() as now offset 0) as c
where (%(label)s::text is null or %(label)s = {schema}.label(j.status, j.is_held, j.attempts, j.scheduled_at, c.now))
  and (%(queue)s::text is null or j.queue_name = %(queue)s)
  and (%(job_type)s::text is null or j.job_type = %(job_type)s)
  and (%(org_id)s::uuid is null or j.org_id = %(org_id)s)
  and (%(id)s::uuid is null or j.id = %(id)s)
order by j.id desc
limit %(limit)s
