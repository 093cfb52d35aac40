-- note_attempts: write into the history how executions have ended. The only insert into
-- job_executions.
--
-- In:     the worker that held the jobs; what their rows say, and how each ended (ended_attempt).
-- Locks:  none: the caller holds the rows, and has read them. To read them again here costs four
--         pages a job.
-- Index:  job_executions_pkey.
create or replace function {schema}.note_attempts(
    worker_id uuid, ended {schema}.ended_attempt[], ended_at timestamptz)
returns void
language plpgsql volatile
as $$
begin
    insert into {schema}.job_executions (
        id, job_id, org_id, attempt, worker_id, outcome, started_at, ended_at, error_message)
    select e.execution_id, e.job_id, e.org_id, greatest(e.attempt, 1), note_attempts.worker_id, e.outcome,
        e.started_at, note_attempts.ended_at, e.error_message
    from unnest(ended) as e;
    if ended is not null and pg_relation_size('{schema}.followers') > 0 then
        perform {schema}.tell_of_ended(ended);
    end if;
end
$$;
