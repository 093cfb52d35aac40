-- stacks_asked: which of these requests are really made to a worker, and are not answered.
select s.request_id, s.job_id, s.execution_id
from {schema}.stack_requests as s
where s.request_id = any ($2) and s.worker_id = $1 and s.answered_at is null
