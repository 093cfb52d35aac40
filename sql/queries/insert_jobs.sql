-- insert_jobs: a batch of jobs without unique keys; arrays of one length, values checked by the
-- client (model/new_job.py).
--
-- This is no function, because there is nothing to decide and nothing to plan: enqueue and
-- enqueue_many take 20 to 30 microseconds longer. All jobs of a batch have one time, so that those
-- due now are claimed in order of id, which is the order they were given in. An empty text stands
-- for null: a session with `array_nulls = off`, which may be the caller's, takes null in an array
-- for a word. A queue that is null was not said: the handler's is taken, if one is known
-- (functions/worker/handlers.sql). The array of headers is null if no job has any.
--
-- $11 has the types of the jobs that name no queue, each once; `queues` has their handlers' queues,
-- in the same order. The naive statement asks for the handler's queue once a job: 5 of 17
-- microseconds a job in batches of a hundred. A join with the answers takes 10 microseconds a
-- statement more than a place in an array.
insert into {schema}.jobs (id, org_id, queue_name, job_type, payload, priority, scheduled_at, max_attempts, queue_not_said, headers)
select n.id, n.org_id, coalesce(n.queue_name, c.queues[array_position($11::text[], n.job_type)], 'default'), n.job_type,
    n.payload::jsonb, n.priority, coalesce(n.scheduled_at, c.now + make_interval(secs => coalesce(n.delay, 0))), n.max_attempts,
    n.queue_name is null and c.queues[array_position($11::text[], n.job_type)] is null, n.headers::jsonb
from (
        select {schema}.clock() as now,
            array(select {schema}.queue_of(t.job_type) from unnest($11::text[]) as t(job_type)) as queues
        offset 0
    ) as c,
    unnest($1::uuid[], $2::uuid[], array_replace($3::text[], '', null), $4::text[], $5::text[], $6::smallint[],
        array_replace($7::text[], '', null)::timestamptz[], array_replace($8::text[], '', null)::float8[],
        array_replace($9::text[], '', null)::integer[], array_replace($10::text[], '', null))
        as n(id, org_id, queue_name, job_type, payload, priority, scheduled_at, delay, max_attempts, headers)
