-- dead: some dead letters, the latest first. Every filter may be null. As in jobs.sql, what is too
-- large is left out.
-- In: id, queue, job type, how many, tenant, part of the error, after which they died, fingerprint.
select d.id, d.org_id, d.queue_name, d.job_type, case when u.payload is null then d.payload end as payload, u.payload as unread_bytes,
    d.priority, d.scheduled_at, d.attempts, d.max_attempts, d.unique_key, d.created_at, d.reason,
    left(d.error_message, 10000) as error_message, case when u.history is null then d.history end as history, d.died_at, d.headers,
    case when pg_column_size(d.saved) <= 131072 then d.saved end as saved
from (
    select d.*
    from {schema}.dead_letter_jobs as d
    where ($1::uuid is null or d.id = $1)
      and {schema}.letter_fits(d, $2::text, $3::text, $5::uuid, $6::text, $7::timestamptz, $8::text)
    order by d.died_at desc, d.id desc
    limit $4
) as d,
    lateral (select {schema}.unread_bytes(d.payload) as payload, {schema}.unread_bytes(d.history) as history offset 0) as u
order by d.died_at desc, d.id desc
