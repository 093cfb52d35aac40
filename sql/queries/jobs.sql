-- jobs: some jobs for people, newest first. Every filter may be null. `label` is a status or a
-- derived one.
-- In: id, label, queue, job type, tenant, limit.
-- Out: documents that only raw SQL stores, too large to be read beside others, are left out
--      (`unread_bytes`), and texts are cut.
select j.id, j.org_id, j.queue_name, j.job_type, case when u.payload is null then j.payload end as payload, u.payload as unread_bytes,
    j.priority, j.status, j.scheduled_at, j.attempts, j.max_attempts, j.locked_by, j.current_execution_id, j.lease_expires_at,
    j.started_at, j.completed_at, left(j.error_message, 10000) as error_message,
    case when u.result is null then j.result else to_jsonb(format('(%s bytes are more than is read)', u.result)) end as result,
    j.progress, left(j.progress_message, 10000) as progress_message, j.unique_key, j.created_at, j.label, j.headers, j.saved
from (
    select j.*, {schema}.label(j.status, j.is_held, j.attempts, j.scheduled_at, c.now) as label
    from {schema}.jobs as j, (select {schema}.clock() as now offset 0) as c
    where ($2::text is null or $2 = {schema}.label(j.status, j.is_held, j.attempts, j.scheduled_at, c.now))
      and ($3::text is null or j.queue_name = $3)
      and ($4::text is null or j.job_type = $4)
      and ($5::uuid is null or j.org_id = $5)
      and ($1::uuid is null or j.id = $1)
    order by j.id desc
    limit $6
) as j,
    lateral (select {schema}.unread_bytes(j.payload) as payload, {schema}.unread_bytes(j.result) as result offset 0) as u
order by j.id desc
