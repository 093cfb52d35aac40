-- recovered: how many executions were lost with their worker and their jobs completed all the same.
select count(*)
from {schema}.job_executions as e
join {schema}.jobs as j on j.id = e.job_id
where e.outcome = 'lost' and j.status = 'completed'
