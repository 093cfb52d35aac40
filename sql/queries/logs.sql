-- logs: what handlers of a job have logged, an attempt a row, oldest first.
-- In: the job; the tenant, the attempt, or null.
select l.execution_id, l.attempt, l.head, l.tail, l.lines_left_out
from {schema}.job_logs as l
where l.job_id = $1 and ($2::uuid is null or l.org_id = $2) and ($3::integer is null or l.attempt = $3)
order by l.attempt, l.execution_id
