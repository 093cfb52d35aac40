-- list_audit: rows of the trail, the latest first. Every filter may be null. In: tenant, action,
-- job, limit.
select a.id, a.at, a.org_id, n.name as org, a.action, a.details, a.job_id, a.execution_id, a.written_by
from {schema}.org_audit as a left join {schema}.org_names as n on n.org_id = a.org_id
where ($1::uuid is null or a.org_id = $1) and ($2::text is null or a.action = $2) and ($3::uuid is null or a.job_id = $3)
order by a.id desc
limit $4
