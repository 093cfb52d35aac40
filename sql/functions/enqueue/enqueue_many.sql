-- enqueue_many: a batch of jobs in one statement.
--
-- In:     arrays of one length. The client has checked the values (model/new_job.py). A queue or a
--         maximum that is null was not said: see enqueue. The array of headers is null if no job
--         has any.
-- Out:    one row a job: its place in the order given, and its id. If an unfinished job holds its
--         unique_key, the id of that job.
-- Locks, index: those of enqueue_unique, if any job has a unique_key.
--
-- All jobs of a batch have one time. So those that are due now are claimed in order of id, which is
-- the order in which they were given.
create or replace function {schema}.enqueue_many(
    job_ids uuid[], org_ids uuid[], queue_names text[], job_types text[], payloads text[], priorities smallint[],
    times timestamptz[], delays double precision[], maxima integer[], unique_keys text[],
    headers text[] default null)
returns table (place bigint, job_id uuid)
language plpgsql volatile
set jit = off
set enable_seqscan = off
as $$
#variable_conflict use_column
declare
    time_now timestamptz := {schema}.clock();
    known_queues text[];
begin
    -- A tenant chooses no ids. enqueue_unique knows that, too.
    if num_nonnulls(variadic unique_keys) > 0 or not has_column_privilege('{schema}.jobs', 'id', 'insert') then
        return query
        select u.place, u.job_id
        from {schema}.enqueue_unique(
            job_ids, org_ids, queue_names, job_types, payloads, priorities, times, delays, maxima, unique_keys,
            enqueue_many.headers) as u;
        return;
    end if;
    if array_position(queue_names, null) is not null then
        select array_agg(case when n.queue_name is null then {schema}.queue_of(n.job_type) end order by n.place)
        into known_queues
        from unnest(queue_names, job_types) with ordinality as n(queue_name, job_type, place);
    end if;
    insert into {schema}.jobs (
        id, org_id, queue_name, job_type, payload, priority, scheduled_at, max_attempts, queue_not_said, headers)
    select n.id, n.org_id, coalesce(n.queue_name, n.known_queue, 'default'), n.job_type, n.payload::jsonb, n.priority,
        coalesce(n.scheduled_at, time_now + make_interval(secs => coalesce(n.delay, 0))), n.max_attempts,
        n.queue_name is null and n.known_queue is null, n.headers::jsonb
    from unnest(job_ids, org_ids, queue_names, job_types, payloads, priorities, times, delays, maxima, known_queues,
        enqueue_many.headers)
        as n(id, org_id, queue_name, job_type, payload, priority, scheduled_at, delay, max_attempts, known_queue, headers);
    return query select n.place, n.id from unnest(job_ids) with ordinality as n(id, place);
end
$$;
