-- troubles: jobs that were put aside, the latest first: what could not be done, what was said, and
-- when it is tried again. `wish`: how the execution is to be settled once its row can be written.
-- Every filter may be null.
select t.job_id, t.org_id, coalesce(j.queue_name, d.queue_name) as queue_name, coalesce(j.job_type, d.job_type) as job_type, t.verb,
    t.sqlstate, t.error_message, t.tries, t.first_at, t.last_at, t.look_at, t.outcome as wish
from {schema}.job_troubles as t
left join {schema}.jobs as j on j.id = t.job_id
left join {schema}.dead_letter_jobs as d on d.id = t.job_id
where ($1::uuid is null or t.job_id = $1)
  and ($2::uuid[] is null or t.job_id = any ($2))
  and ($3::text is null or t.verb = $3)
  and ($4::float8 is null or t.last_at >= {schema}.clock() - make_interval(secs => $4))
order by t.last_at desc, t.job_id
limit $5
