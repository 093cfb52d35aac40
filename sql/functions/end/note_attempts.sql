-- note_attempts: write into the history how executions have ended.
--
-- In:     the worker that held the jobs; and arrays of one length: jobs, executions, and what their rows say of tenant, attempt and
--         start; how each ended (the outcomes of `job_executions`), and why.
-- Locks:  none: the caller holds the rows, and has read them. To read them again here costs four pages a job.
-- Index:  job_executions_pkey.
--
-- For what ends seldom: deaths (settle) and lost jobs (reclaim). All others are noted in the statement that ends them
-- (complete.sql, settle.sql), which has the rows in its hand.
create or replace function {schema}.note_attempts(
    worker_id uuid, job_ids uuid[], execution_ids uuid[], org_ids uuid[], attempts integer[], starts timestamptz[],
    outcomes text[], errors text[], ended_at timestamptz)
returns void
language plpgsql volatile
as $$
begin
    insert into {schema}.job_executions (
        id, job_id, org_id, attempt, worker_id, outcome, started_at, ended_at, error_message)
    select e.execution_id, e.job_id, e.org_id, greatest(e.attempt, 1), note_attempts.worker_id, e.outcome,
        e.started_at, note_attempts.ended_at, e.error
    from unnest(job_ids, execution_ids, org_ids, note_attempts.attempts, starts, outcomes, errors)
        as e(job_id, execution_id, org_id, attempt, started_at, outcome, error);
end
$$;
