-- enqueue_many: a batch of jobs in one statement; arrays of one length, values checked by the client (model/job.py).
--
-- Out:    one row a job in the order given: its id, or that of the unfinished job that holds its unique_key already.
create or replace function {schema}.enqueue_many(
    ids uuid[], org_ids uuid[], queue_names text[], job_types text[], payloads text[], priorities smallint[],
    times timestamptz[], delays double precision[], maxima integer[], unique_keys text[])
returns table (place bigint, job_id uuid)
language plpgsql volatile
as $$
#variable_conflict use_column
begin
    if num_nonnulls(variadic unique_keys) = 0 then
        insert into {schema}.jobs (id, org_id, queue_name, job_type, payload, priority, scheduled_at, max_attempts)
        select n.id, n.org_id, n.queue_name, n.job_type, n.payload::jsonb, n.priority,
            coalesce(n.scheduled_at, {schema}.clock() + make_interval(secs => coalesce(n.delay, 0))), n.max_attempts
        from unnest(ids, org_ids, queue_names, job_types, payloads, priorities, times, delays, maxima)
            as n(id, org_id, queue_name, job_type, payload, priority, scheduled_at, delay, max_attempts);
        return query select n.place, n.id from unnest(ids) with ordinality as n(id, place);
        return;
    end if;
    insert into {schema}.jobs (id, org_id, queue_name, job_type, payload, priority, scheduled_at, max_attempts, unique_key)
    select n.id, n.org_id, n.queue_name, n.job_type, n.payload::jsonb, n.priority,
        coalesce(n.scheduled_at, {schema}.clock() + make_interval(secs => coalesce(n.delay, 0))), n.max_attempts, n.unique_key
    from unnest(ids, org_ids, queue_names, job_types, payloads, priorities, times, delays, maxima, unique_keys)
        as n(id, org_id, queue_name, job_type, payload, priority, scheduled_at, delay, max_attempts, unique_key)
    on conflict (org_id, unique_key) where holds_unique_key do nothing;
    return query
    select n.place, coalesce(j.id, k.id)
    from unnest(ids, org_ids, unique_keys) with ordinality as n(id, org_id, unique_key, place)
    left join {schema}.jobs as j on j.id = n.id
    left join {schema}.jobs as k on j.id is null and k.org_id = n.org_id and k.unique_key = n.unique_key and k.holds_unique_key
    order by n.place;
end
$$;
