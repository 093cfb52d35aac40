-- heartbeat: a sign of life of a worker, and the renewal of the leases that need it.
--
-- In:     the worker; the leases to renew, in job id order; the length of the lease in seconds.
-- Out:    surprises only. `cancelled`: still held, and its handler shall stop (with the message left by whoever
--         cancelled); `lost`: somebody else's by now, nothing was renewed.
-- Locks:  the jobs, in id order, before the expiry is computed: an update that waits for a row lock would store an expiry
--         counted from before the wait.
--
-- The lost ones are found by a hashed subplan, which no planner setting turns off; a nested loop took 2.3 s for 5,000 leases.
-- `= any (job_ids)` and the join: see complete.sql.
create or replace function {schema}.heartbeat(
    by_worker uuid, job_ids uuid[], execution_ids uuid[], for_seconds double precision)
returns table (job_id uuid, became text, why text)
language plpgsql volatile
set plan_cache_mode = force_generic_plan
set jit = off
set enable_seqscan = off
set enable_bitmapscan = off
set enable_nestloop = off
set enable_mergejoin = off
as $$
#variable_conflict use_column
begin
    perform set_config('synchronous_commit', 'off', true);
    update {schema}.worker_heartbeats as w
    set last_beat_at = {schema}.clock(), session_lost_at = null
    where w.worker_id = by_worker;

    return query
    with held as materialized (
        select j.id, j.status, j.error_message
        from unnest(job_ids, execution_ids) as e(id, execution_id)
        join {schema}.jobs as j on j.id = any (job_ids) and j.id = e.id and j.current_execution_id = e.execution_id
        for no key update of j
    ), renewed as (
        update {schema}.jobs as j
        set lease_expires_at = {schema}.clock() + make_interval(secs => for_seconds)
        from held
        where j.id = any (job_ids) and j.id = held.id
        returning j.id
    )
    select held.id, 'cancelled', held.error_message
    from held
    where held.status = 'cancelled'
    union all
    select e.id, 'lost', null
    from unnest(job_ids) as e(id)
    where e.id not in (select held.id from held);
end
$$;
