-- note_attempts: write into the history how executions have ended, while their jobs' rows still have them.
--
-- In:     the worker that held the jobs; jobs and executions; how each ended (the outcomes of `job_executions`), and why.
-- Locks:  none: the caller holds the rows.
-- Index:  jobs_pkey, job_executions_pkey.
--
-- For what ends seldom: deaths (settle) and lost jobs (reclaim). All others are noted in the statement that ends them
-- (complete.sql, settle.sql), which has the rows in its hand.
create or replace function {schema}.note_attempts(
    worker_id uuid, job_ids uuid[], execution_ids uuid[], outcomes text[], errors text[], ended_at timestamptz)
returns void
language plpgsql volatile
set plan_cache_mode = force_generic_plan
set jit = off
set enable_seqscan = off
set enable_bitmapscan = off
set enable_nestloop = off
set enable_mergejoin = off
as $$
begin
    insert into {schema}.job_executions (
        id, job_id, org_id, attempt, worker_id, outcome, started_at, ended_at, error_message)
    select e.execution_id, j.id, j.org_id, greatest(j.attempts, 1), note_attempts.worker_id, e.outcome,
        coalesce(j.started_at, j.created_at), note_attempts.ended_at, e.error
    from unnest(job_ids, execution_ids, outcomes, errors) as e(id, execution_id, outcome, error)
    join {schema}.jobs as j on j.id = any (job_ids) and j.id = e.id and j.current_execution_id = e.execution_id;
end
$$;
