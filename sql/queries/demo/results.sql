-- results: what the handlers of a job type returned, by job. In: $1 job type.
select j.id, j.result
from {schema}.jobs as j
where j.job_type = $1::text
