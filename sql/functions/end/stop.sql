-- stop: end a batch of executions whose handlers have stopped because their jobs were cancelled.
--
-- In:     arrays of one length, in job id order: jobs, executions, what each handler said of it, or
--         null.
-- Out:    surprises only. A job missing from the reply ended as asked. `lost`: the execution does
--         not hold the job any more, and nothing was written; `completed`: the handler's own
--         transaction had completed the job, and the handler did not know.
-- Locks:  the jobs, in id order.
-- Index:  jobs_pkey. `= any (job_ids)` and the join: see complete.sql.
--
-- bury calls it too, for jobs that were cancelled before they could die. The job keeps the reason
-- of the cancel, if one was given; else it says what its handler said.
create or replace function {schema}.stop(worker_id uuid, job_ids uuid[], execution_ids uuid[], error_messages text[])
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
    time_now constant timestamptz := {schema}.clock();
    ended {schema}.ended_attempt[];
    awaited integer;
    succeeded integer;
begin
    with ended as (
        update {schema}.jobs as j
        set status = 'cancelled',
            completed_at = coalesce(j.completed_at, time_now),
            locked_by = null, current_execution_id = null, lease_expires_at = null,
            error_message = coalesce(case when j.status = 'cancelled' then j.error_message end, e.error)
        from unnest(job_ids, execution_ids, error_messages) as e(id, execution_id, error)
        where j.id = any (job_ids) and j.id = e.id and j.current_execution_id = e.execution_id
        returning j.awaited, j.key_passed_on,
            row(j.id, e.execution_id, j.org_id, j.attempts, coalesce(j.started_at, j.created_at), 'cancelled', e.error)
                ::{schema}.ended_attempt as attempt
    )
    select array_agg(t.attempt), count(*) filter (where t.awaited), count(*) filter (where t.key_passed_on)
    into ended, awaited, succeeded
    from ended as t;
    perform {schema}.note_attempts(stop.worker_id, ended, time_now);
    if pg_relation_size('{schema}.hooks') > 0 then
        perform {schema}.fire_hooks(array(select e.job_id from unnest(ended) as e));
    end if;
    if succeeded > 0 then
        perform {schema}.start_successors(job_ids);
    end if;
    if awaited > 0 or coalesce(cardinality(ended), 0) < cardinality(job_ids) then
        return query select * from {schema}.surprises(job_ids, execution_ids, 'cancelled');
    end if;
end
$$;
