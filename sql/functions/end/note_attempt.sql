-- note_attempt: write into the history how an execution has ended.
--
-- In:     the execution and its job, as the job's row has them; the worker that held it; how it ended (the outcomes of
--         `job_executions`), and why.
-- Locks:  none: the caller holds the job's row.
-- Index:  job_executions_pkey.
--
-- For one job at a time: a death (settle) and a lost job (reclaim). A batch writes its history in the statement that ends it
-- (complete.sql, settle.sql), for a call for each row would cost more than the row.
create or replace function {schema}.note_attempt(
    job_id uuid, execution_id uuid, org_id uuid, attempt integer, worker_id uuid, outcome text,
    started_at timestamptz, ended_at timestamptz, error_message text)
returns void
language plpgsql volatile
as $$
begin
    insert into {schema}.job_executions (
        id, job_id, org_id, attempt, worker_id, outcome, started_at, ended_at, error_message)
    values (
        note_attempt.execution_id, note_attempt.job_id, note_attempt.org_id, greatest(note_attempt.attempt, 1),
        note_attempt.worker_id, note_attempt.outcome, note_attempt.started_at, note_attempt.ended_at,
        note_attempt.error_message);
end
$$;
