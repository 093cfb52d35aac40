-- claim_by_type, next_by_type: what claim (see there) does if jobs that the worker has no handler
-- for stand before those that it has one for.
--
-- Each type is a range of its own, so the claim walks over no jobs of other types. It costs a look
-- for each handler of the worker.
-- Index: jobs_claimable_by_type.

-- next_by_type: the highest priority below `bound` that has a job of some types, and the time of
-- the earliest such job there.
create or replace function {schema}.next_by_type(
    queue_name text, bound integer, job_types text[], has_troubles boolean, time_now timestamptz)
returns table (priority smallint, scheduled_at timestamptz)
language plpgsql volatile
set plan_cache_mode = force_generic_plan
set jit = off
set enable_seqscan = off
set enable_bitmapscan = off
as $$
#variable_conflict use_column
begin
    return query
    select n.priority, n.scheduled_at
    from unnest(job_types) as t(name)
    cross join lateral (
        select j.priority, j.scheduled_at
        from {schema}.jobs as j
        where j.is_claimable and j.queue_name || ' ' || j.job_type = next_by_type.queue_name || ' ' || t.name
          and j.priority < bound
          and (not has_troubles or not {schema}.is_in_trouble(j.org_id, j.id, time_now))
        order by j.queue_name || ' ' || j.job_type, j.priority desc, j.scheduled_at, j.id
        limit 1
    ) as n
    order by n.priority desc, n.scheduled_at
    limit 1;
end
$$;

-- claim_by_type: take the earliest due jobs of some types, of one queue and one priority. They are
-- returned in no order.
--
-- In:     as claim; `wanted` jobs at the most. `before`: executions of the same claim have numbers
--         up to this one already.
-- Out:    the jobs as claim gives them, and the weight of each; a row whose `job` is null when the
--         bytes were used up.
-- Locks:  the claimed rows, `skip locked`. Twice as many as are wanted are looked at, because some
--         may be locked by others.
create or replace function {schema}.claim_by_type(
    worker_id uuid, queue_name text, level integer, wanted integer, lease_seconds double precision, job_types text[],
    maxima integer[], room bigint, payload_bytes_max bigint, has_troubles boolean, time_now timestamptz, claim_id bytea,
    before integer)
returns table (job {schema}.claimed, weight bigint)
language plpgsql volatile
set plan_cache_mode = force_generic_plan
set jit = off
set enable_seqscan = off
set enable_bitmapscan = off
set enable_hashjoin = off
set enable_mergejoin = off
as $$
#variable_conflict use_column
declare
    taken_at timestamptz;  -- the rows are locked by then
    looked_at constant bigint := 2 * wanted::bigint + 8;
    ids uuid[];
    weights bigint[];
    is_cut boolean;
begin
    select array_agg(c.id) into ids
    from (
        select c.id
        from unnest(job_types) as t(name)
        cross join lateral (
            select j.id, j.scheduled_at
            from {schema}.jobs as j
            where j.is_claimable and j.queue_name || ' ' || j.job_type = claim_by_type.queue_name || ' ' || t.name
              and j.priority = level::smallint
              and {schema}.may_start(j, null, has_troubles, time_now)  -- of these types by the range
            order by j.queue_name || ' ' || j.job_type, j.priority desc, j.scheduled_at, j.id
            limit looked_at
        ) as c
        order by c.scheduled_at, c.id
        limit looked_at
    ) as c;

    -- From here on rows are found by key alone, without a join. With a join, a planner that
    -- believes the table empty walks through it. The statement says `status = 'pending'` and not
    -- `is_claimable`: that would offer another index than the key's.
    with due as materialized (
        select j.id, {schema}.claim_weight(j.payload, j.saved) as weight
        from {schema}.jobs as j
        where j.id = any (ids) and j.status = 'pending' and {schema}.may_start(j, job_types, has_troubles, time_now)
        order by j.scheduled_at, j.id
        limit wanted
        for update skip locked
    ), summed as (
        select d.id, d.weight, row_number() over w as place, sum(d.weight) over w as total
        from due as d
        window w as (rows unbounded preceding)
    )
    select
        array_agg(s.id order by s.place) filter (where s.total <= room or s.place + before = 1),
        array_agg(s.weight order by s.place) filter (where s.total <= room or s.place + before = 1),
        bool_or(s.total > room and s.place + before > 1)
    into ids, weights, is_cut
    from summed as s;

    taken_at := {schema}.clock();
    return query
    update {schema}.jobs as j
    set status = 'running',
        attempts = j.attempts + 1,
        max_attempts = coalesce(j.max_attempts, greatest(
            coalesce(maxima[array_position(job_types, j.job_type::text)], 15), j.attempts + 1)),
        locked_by = claim_by_type.worker_id,
        current_execution_id = encode(claim_id || int4send(before + array_position(ids, j.id)), 'hex')::uuid,
        started_at = taken_at,
        lease_expires_at = taken_at + make_interval(secs => lease_seconds),
        progress = null,
        progress_message = null
    where j.id = any (ids) and j.status = 'pending'
    returning
        row(
            j.id, j.current_execution_id, j.org_id, j.queue_name::text, j.job_type::text,
            case when payload_bytes_max is null or weights[array_position(ids, j.id)] <= payload_bytes_max
                or {schema}.fits(j.payload, payload_bytes_max) then j.payload::text end,
            j.priority, j.scheduled_at, j.attempts, j.max_attempts, j.unique_key, j.created_at, j.started_at,
            j.lease_expires_at, j.saved::text, j.headers::text)::{schema}.claimed,
        weights[array_position(ids, j.id)];
    if is_cut then
        return query select null::{schema}.claimed, null::bigint;
    end if;
end
$$;
