-- count_dead: how many dead letters there are of some kind. Every filter may be null.
select count(*)
from {schema}.dead_letter_jobs as d
where (%(queue)s::text is null or d.queue_name = %(queue)s)
  and (%(job_type)s::text is null or d.job_type = %(job_type)s)
