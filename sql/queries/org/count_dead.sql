-- count_dead: how many dead letters a tenant has. In: tenant; queue and job type, which may be
-- null.
select count(*)
from {schema}.dead_letter_jobs as d
where d.org_id = $1
  and ($2::text is null or d.queue_name = $2)
  and ($3::text is null or d.job_type = $3)
