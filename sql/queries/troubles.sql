-- troubles: the jobs that were put aside, the latest first: what could not be done, what was said of it, and the next look.
select t.job_id, t.org_id, t.verb, t.sqlstate, t.error_message, t.first_at, t.last_at, t.tries, t.look_at
from {schema}.job_troubles as t
order by t.last_at desc, t.job_id
limit %(limit)s
