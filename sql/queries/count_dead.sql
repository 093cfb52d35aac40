-- count_dead: how many dead letters there are of some kind. Every filter may be null.
select count(*)
from {schema}.dead_letter_jobs as d
where ($1::text is null or d.queue_name = $1)
  and ($2::text is null or d.job_type = $2)
