-- count_erasable: what an erasure would find. Every filter may be null, but not all (erase).
-- In: tenant, unique key, payload, queue, job type.
-- Out: jobs, those of them that a worker holds, dead letters.
select
    count(*) as jobs,
    count(*) filter (where j.is_held) as held,
    (select count(*) from {schema}.dead_letter_jobs as d
     where {schema}.is_meant(
         d.org_id, d.unique_key, d.payload, d.queue_name, d.job_type, $1::uuid, $2::text, $3::jsonb, $4::text, $5::text)) as letters
from {schema}.jobs as j
where {schema}.is_meant(j.org_id, j.unique_key, j.payload, j.queue_name, j.job_type, $1::uuid, $2::text, $3::jsonb, $4::text, $5::text)
