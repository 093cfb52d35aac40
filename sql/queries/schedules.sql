-- schedules: the schedules, by name; of a tenant, if one is given; of a name, if one is given.
select s.name, s.org_id, s.rule, s.tz, s.exclude, s.job_type, s.payload, s.queue_name, s.priority, s.max_attempts, s.missed,
    s.window_seconds, s.overlap, s.jitter_seconds, s.owner, nullif(s.next_at, 'infinity') as next_at, s.last_at,
    s.paused_at, s.who, s.why, s.unlisted_at, s.error_message, s.created_at, {schema}.clock() as read_at
from {schema}.schedules as s
where ($1::uuid is null or s.org_id = $1::uuid) and ($2::text is null or s.name = $2::text)
order by s.name, s.org_id
