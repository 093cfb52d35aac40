-- recovered: how many executions were lost with their worker and their jobs completed all the same;
-- and one of those jobs.
select count(*), (array_agg(j.id))[1]
from {schema}.job_executions as e
join {schema}.jobs as j on j.id = e.job_id
where e.outcome = 'lost' and j.status = 'completed'
