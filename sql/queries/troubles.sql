-- troubles: jobs that were put aside, the latest first: what could not be done, what was said, and when it is tried again. `wish`: how the
-- execution is to be settled once its row can be written. Every filter may be null.
select t.job_id, t.org_id, coalesce(j.queue_name, d.queue_name) as queue_name, coalesce(j.job_type, d.job_type) as job_type, t.verb,
    t.sqlstate, t.error_message, t.tries, t.first_at, t.last_at, t.look_at, t.outcome as wish
from {schema}.job_troubles as t
left join {schema}.jobs as j on j.id = t.job_id
left join {schema}.dead_letter_jobs as d on d.id = t.job_id
where (%(id)s::uuid is null or t.job_id = %(id)s)
  and (%(ids)s::uuid[] is null or t.job_id = any (%(ids)s))
  and (%(verb)s::text is null or t.verb = %(verb)s)
  and (%(within_seconds)s::float8 is null or t.last_at >= {schema}.clock() - make_interval(secs => %(within_seconds)s))
order by t.last_at desc, t.job_id
limit %(limit)s
