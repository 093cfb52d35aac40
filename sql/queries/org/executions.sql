-- executions: the attempts of a job of a tenant, ended and under way, oldest first. A job of
-- another tenant has none. In: tenant, job.
select e.id, e.job_id, e.attempt, e.worker_id, e.outcome, e.started_at, e.ended_at, left(e.error_message, 10000) as error_message
from {schema}.executions as e
where e.job_id = $2 and e.org_id = $1
order by e.started_at, e.id
