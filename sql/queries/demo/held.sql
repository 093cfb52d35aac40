-- held: how many jobs of a type a worker process runs. In: $1 its pid, $2 job type.
select count(*)
from {schema}.jobs as j
join {schema}.worker_heartbeats as w on w.worker_id = j.locked_by
where w.pid = $1::integer and j.status = 'running' and j.job_type = $2::text
