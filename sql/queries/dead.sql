-- dead: some dead letters, the latest first. Every filter may be null.
select d.id, d.org_id, d.queue_name, d.job_type, d.payload, d.priority, d.scheduled_at, d.attempts, d.max_attempts,
    d.unique_key, d.created_at, d.reason, d.error_message, d.history, d.died_at
from {schema}.dead_letter_jobs as d
where (%(queue)s::text is null or d.queue_name = %(queue)s)
  and (%(job_type)s::text is null or d.job_type = %(job_type)s)
  and (%(id)s::uuid is null or d.id = %(id)s)
order by d.died_at desc, d.id desc
limit %(limit)s
