-- stacks_asked: which of some requests are really made to a worker, and are not answered. Null
-- requests: all.
select s.request_id, s.job_id, s.execution_id
from {schema}.stack_requests as s
where s.worker_id = $1 and s.answered_at is null and ($2::uuid[] is null or s.request_id = any ($2))
limit 100
