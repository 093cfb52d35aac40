-- attempt, history: how the attempts of a job are written into its dead letter, oldest first.
create or replace function {schema}.attempt(
    execution_id uuid, attempt integer, worker_id uuid, outcome text, started_at timestamptz, ended_at timestamptz, error_message text)
returns jsonb
language sql stable
as $$
    select jsonb_build_object(
        'id', execution_id, 'attempt', attempt, 'worker_id', worker_id, 'outcome', outcome,
        'started_at', started_at, 'ended_at', ended_at, 'error_message', error_message)
$$;

-- The tenant is asked for, because another tenant's job may have had the same id: its history is
-- not this one's.
--
-- The earlier form is dropped: it asked for the job alone.
drop function if exists {schema}.history(uuid);
create or replace function {schema}.history(job_id uuid, org_id uuid) returns jsonb
language sql stable
as $$
    select coalesce(jsonb_agg({schema}.attempt(
        e.id, e.attempt, e.worker_id, e.outcome, e.started_at, e.ended_at, e.error_message) order by e.started_at, e.id), '[]')
    from {schema}.job_executions as e
    where e.job_id = history.job_id and e.org_id = history.org_id
$$;
