-- bury: end a batch of executions whose jobs shall not be tried again. Each becomes a dead letter.
--
-- In:     arrays of one length, in job id order: jobs, executions, the outcome for the history,
--         error message, reason of death (null: exhausted).
-- Out:    surprises only. A job missing from the reply ended as asked. `lost`: the execution does
--         not hold the job any more, and nothing was written; `cancelled`: a cancel had committed
--         first, and won: the job ends where it is; `completed`: the handler's own transaction had
--         completed the job, and the handler did not know.
-- Errors: as of move_to_letters.
-- Locks:  the jobs, in id order.
-- Index:  jobs_pkey. `= any (job_ids)` and the join: see complete.sql.
create or replace function {schema}.bury(
    worker_id uuid, job_ids uuid[], execution_ids uuid[], outcomes text[], error_messages text[], reasons text[])
returns table (job_id uuid, became text)
language plpgsql volatile
set plan_cache_mode = force_generic_plan
set jit = off
set enable_seqscan = off
set enable_bitmapscan = off
set enable_nestloop = off
set enable_mergejoin = off
as $$
#variable_conflict use_column
declare
    time_now timestamptz;
    dead {schema}.ended_attempt[];
    dead_reasons text[];
    cancelled_ids uuid[];
    cancelled_executions uuid[];
    cancelled_errors text[];
begin
    -- Each row is locked before it is looked at, so all that follows sees one state.
    select
        array_agg(
            row(a.id, a.execution_id, a.org_id, a.attempts, a.started_at, a.outcome, a.error)::{schema}.ended_attempt)
            filter (where a.status = 'running'),
        array_agg(a.reason) filter (where a.status = 'running'),
        array_agg(a.id) filter (where a.status = 'cancelled'),
        array_agg(a.execution_id) filter (where a.status = 'cancelled'),
        array_agg(a.error) filter (where a.status = 'cancelled')
    into dead, dead_reasons, cancelled_ids, cancelled_executions, cancelled_errors
    from (
        select j.id, e.execution_id, j.org_id, j.attempts, coalesce(j.started_at, j.created_at) as started_at,
            e.outcome, e.error, coalesce(e.reason, 'exhausted') as reason, j.status
        from unnest(job_ids, execution_ids, outcomes, error_messages, reasons) as e(id, execution_id, outcome, error, reason)
        join {schema}.jobs as j on j.id = any (job_ids) and j.id = e.id and j.current_execution_id = e.execution_id
        for no key update of j
    ) as a;
    time_now := {schema}.clock();
    if dead is not null then
        perform {schema}.note_attempts(bury.worker_id, dead, time_now);
        perform {schema}.move_to_letters(dead, dead_reasons, time_now);
    end if;
    if cancelled_ids is not null then
        perform {schema}.stop(bury.worker_id, cancelled_ids, cancelled_executions, cancelled_errors);
    end if;
    if coalesce(cardinality(dead), 0) < cardinality(job_ids) then
        return query select * from {schema}.surprises(job_ids, execution_ids, null);
    end if;
end
$$;
