-- count_dead: how many dead letters there are of some kind. Every filter may be null.
-- In: queue, job type, tenant, part of the error, after which they died, fingerprint.
select count(*)
from {schema}.dead_letter_jobs as d
where {schema}.letter_fits(d, $1::text, $2::text, $3::uuid, $4::text, $5::timestamptz, $6::text)
