-- cancelled: which of these executions shall stop, because their jobs were cancelled, and why. A
-- worker asks this if a notification says so, because anybody can send one. It only reads. It takes
-- a third of the time of a heartbeat, which tells the same.
--
-- In:     one execution for each job, as for heartbeat.
-- Index:  jobs_pkey.
create or replace function {schema}.cancelled(job_ids uuid[], execution_ids uuid[])
returns table (job_id uuid, why text)
language plpgsql stable
set plan_cache_mode = force_generic_plan
set jit = off
set enable_seqscan = off
set enable_bitmapscan = off
as $$
begin
    -- Ids of executions are never used twice, so that an execution of the list can only be that of
    -- its own job.
    return query
    select j.id, left(j.error_message, 1000)
    from {schema}.jobs as j
    where j.id = any (job_ids) and j.current_execution_id = any (execution_ids) and j.status = 'cancelled';
end
$$;
