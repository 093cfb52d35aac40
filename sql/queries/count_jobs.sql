-- count_jobs: how many jobs there are of some kind. Every filter may be null.
-- In: queue, job type, tenant, status or label, part of the error, created after, created before.
select count(*)
from {schema}.jobs as j, (select {schema}.clock() as now offset 0) as c
where {schema}.job_fits(
    j, $1::text, $2::text, $3::uuid, $4::text, $5::text, $6::timestamptz, $7::timestamptz, c.now)
