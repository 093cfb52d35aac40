-- enqueue_many: a batch of jobs in one statement.
--
-- In:     arrays of one length. The client has checked the values (model/new_job.py). A queue or a
--         maximum that is null was not said: see enqueue. The array of headers is null if no job
--         has any.
-- Out:    one row a job, in the order given: its id. If an unfinished job holds its unique_key, the
--         id of that job.
-- Locks:  entries of jobs_unique_key, in order of tenant, type and key. If two callers enqueue the
--         same keys, one waits for the other, and they do not deadlock.
-- Index:  jobs_pkey, jobs_unique_key.
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
    found_ids uuid[];
    known_queues text[];
    own_only constant boolean := {schema}.own_only();
begin
    -- A tenant chooses no ids. Its jobs get others than it says, and it is told them.
    if not has_column_privilege('{schema}.jobs', 'id', 'insert') then
        return query
        select n.place, {schema}.enqueue(
            n.job_type, n.payload::jsonb, n.org_id, n.queue_name, n.priority,
            coalesce(n.scheduled_at, time_now + make_interval(secs => coalesce(n.delay, 0))), n.max_attempts, n.unique_key,
            n.headers::jsonb)
        from unnest(org_ids, queue_names, job_types, payloads, priorities, times, delays, maxima, unique_keys, enqueue_many.headers)
            with ordinality
            as n(org_id, queue_name, job_type, payload, priority, scheduled_at, delay, max_attempts, unique_key, headers, place)
        order by n.org_id, n.job_type collate "C", n.unique_key collate "C", n.place;
        return;
    end if;
    if array_position(queue_names, null) is not null then
        select array_agg(case when n.queue_name is null then {schema}.queue_of(n.job_type) end order by n.place)
        into known_queues
        from unnest(queue_names, job_types) with ordinality as n(queue_name, job_type, place);
    end if;
    if num_nonnulls(variadic unique_keys) = 0 then
        insert into {schema}.jobs (
            id, org_id, queue_name, job_type, payload, priority, scheduled_at, max_attempts, queue_not_said, headers)
        select n.id, n.org_id, coalesce(n.queue_name, n.known_queue, 'default'), n.job_type, n.payload::jsonb, n.priority,
            coalesce(n.scheduled_at, time_now + make_interval(secs => coalesce(n.delay, 0))), n.max_attempts,
            n.queue_name is null and n.known_queue is null, n.headers::jsonb
        from unnest(job_ids, org_ids, queue_names, job_types, payloads, priorities, times, delays, maxima, known_queues,
            enqueue_many.headers)
            as n(id, org_id, queue_name, job_type, payload, priority, scheduled_at, delay, max_attempts, known_queue, headers);
        return query select n.place, n.id from unnest(job_ids) with ordinality as n(id, place);
        return;
    end if;
    -- Naively: insert, and for keys that are taken, look up the jobs that hold them. If such a job
    -- ends between the two statements, neither finds it.
    loop
        insert into {schema}.jobs (
            id, org_id, queue_name, job_type, payload, priority, scheduled_at, max_attempts, unique_key, queue_not_said, headers)
        select n.id, n.org_id, coalesce(n.queue_name, n.known_queue, 'default'), n.job_type, n.payload::jsonb, n.priority,
            coalesce(n.scheduled_at, time_now + make_interval(secs => coalesce(n.delay, 0))), n.max_attempts, n.unique_key,
            n.queue_name is null and n.known_queue is null, n.headers::jsonb
        from unnest(job_ids, org_ids, queue_names, job_types, payloads, priorities, times, delays, maxima, unique_keys, known_queues,
            enqueue_many.headers)
            with ordinality
            as n(id, org_id, queue_name, job_type, payload, priority, scheduled_at, delay, max_attempts, unique_key, known_queue,
                headers, place)
        where found_ids[n.place] is null
        order by n.org_id, n.job_type collate "C", n.unique_key collate "C", n.place
        on conflict (org_id, job_type, unique_key) where holds_unique_key do nothing;

        select array_agg(
            coalesce(
                (select j.id from {schema}.jobs as j where j.id = n.id),
                case when own_only then {schema}.key_holder(n.org_id, n.job_type, n.unique_key)
                    else (
                        select j.id from {schema}.jobs as j
                        where j.org_id = n.org_id and j.job_type = n.job_type and j.unique_key = n.unique_key
                          and j.holds_unique_key) end)
            order by n.place)
        into found_ids
        from unnest(job_ids, org_ids, job_types, unique_keys) with ordinality as n(id, org_id, job_type, unique_key, place);
        exit when array_position(found_ids, null) is null;
    end loop;
    return query select n.place, n.id from unnest(found_ids) with ordinality as n(id, place);
end
$$;
