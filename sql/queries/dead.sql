-- dead: some dead letters, the latest first. Every filter may be null. As in jobs.sql, what is too
-- large is left out.
select d.id, d.org_id, d.queue_name, d.job_type, case when u.payload is null then d.payload end as payload, u.payload as unread_bytes,
    d.priority, d.scheduled_at, d.attempts, d.max_attempts, d.unique_key, d.created_at, d.reason,
    left(d.error_message, 10000) as error_message, case when u.history is null then d.history end as history, d.died_at, d.headers
from (
    select d.*
    from {schema}.dead_letter_jobs as d
    where ($2::text is null or d.queue_name = $2)
      and ($3::text is null or d.job_type = $3)
      and ($1::uuid is null or d.id = $1)
      and ($5::uuid is null or d.org_id = $5)
    order by d.died_at desc, d.id desc
    limit $4
) as d,
    lateral (select {schema}.unread_bytes(d.payload) as payload, {schema}.unread_bytes(d.history) as history offset 0) as u
order by d.died_at desc, d.id desc
