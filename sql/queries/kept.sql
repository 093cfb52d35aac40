-- kept: when a job or a dead letter is deleted, as the table `retention` says. One row, or none.
-- Index: jobs_pkey, dead_letter_jobs_pkey, retention_pkey.
with found (queue_name, ending, ended_at, payload_is_blank, has_result) as materialized (
    select j.queue_name, case when not j.is_held and j.completed_at is not null then j.status end, j.completed_at,
        {schema}.is_blank(j.payload) and j.headers is null, j.result is not null or j.progress_message is not null
    from {schema}.jobs as j
    where j.id = $1
    union all
    select d.queue_name, 'dead', d.died_at, d.blanked_at is not null, false from {schema}.dead_letter_jobs as d where d.id = $1
    limit 1
)
select f.queue_name, f.ending,
    {schema}.seconds_until(f.ended_at + make_interval(secs => k.keep_seconds), c.now) as goes_in_seconds,
    case when not f.payload_is_blank then
        {schema}.seconds_until(f.ended_at + make_interval(secs => k.payload_seconds), c.now) end as payload_goes_in_seconds,
    case when f.has_result then
        {schema}.seconds_until(f.ended_at + make_interval(secs => k.result_seconds), c.now) end as result_goes_in_seconds
from found as f
cross join (select {schema}.clock() as now offset 0) as c
left join lateral {schema}.kept(f.queue_name, f.ending) as k on true
