-- progress: how many jobs of a type are completed, and how many are running. In: $1 job type.
select count(*) filter (where j.status = 'completed'), count(*) filter (where j.status = 'running')
from {schema}.jobs as j
where j.job_type = $1::text
