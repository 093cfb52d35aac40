-- followed_dead: the same of those that are dead letters now.
select d.id, d.org_id, d.queue_name, d.job_type, 'dead' as label, null::real as progress, null::text as progress_message,
    left(d.error_message, 1000) as error_message
from {schema}.dead_letter_jobs as d
where d.id = any ($1::uuid[]) and ($2::uuid is null or d.org_id = $2)
