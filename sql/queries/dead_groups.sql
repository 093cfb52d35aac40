-- dead_groups: dead letters by what they died of, the largest group first. Every filter may be
-- null.
-- In: queue, job type, tenant, part of the error, after which they died, how many groups.
-- Out: the fingerprint that requeue_all takes; the first lines of their errors without what
--      differs; how many; their types and queues; when the first and the last died; the last, and
--      its error.
select {schema}.fingerprint(d.error_message) as fingerprint, min({schema}.error_pattern(d.error_message)) as error_pattern,
    count(*) as letters, array_agg(distinct d.job_type order by d.job_type) as job_types,
    array_agg(distinct d.queue_name order by d.queue_name) as queue_names, min(d.died_at) as first_died_at,
    max(d.died_at) as last_died_at, (array_agg(d.id order by d.died_at desc, d.id desc))[1] as last_id,
    (array_agg(left(d.error_message, 10000) order by d.died_at desc, d.id desc))[1] as error_message
from {schema}.dead_letter_jobs as d
where {schema}.letter_fits(d, $1::text, $2::text, $3::uuid, $4::text, $5::timestamptz, null)
group by 1
order by 3 desc, 1
limit $6
