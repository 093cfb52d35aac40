-- followed: how some jobs are now that a follower was told of. A job that is gone, or that may not
-- be seen, has no row.
-- In: the jobs; the tenant, or null.
select j.id, j.org_id, j.queue_name::text, j.job_type::text, {schema}.label(j.status, j.is_held, j.attempts, j.scheduled_at, c.now) as label,
    j.progress, left(j.progress_message, 1000) as progress_message, left(j.error_message, 1000) as error_message
from {schema}.jobs as j, (select {schema}.clock() as now offset 0) as c
where j.id = any ($1::uuid[]) and ($2::uuid is null or j.org_id = $2)
