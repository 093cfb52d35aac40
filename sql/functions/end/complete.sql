-- complete: end a batch of executions as completed: the outcome of most jobs, on the shortest way.
--
-- In:     jobs and executions, in job id order. With them, or null where no handler returned or
--         said anything: results (JSON text) and messages, arrays of the same length.
-- Out:    surprises only. A job missing from the reply ended as asked. `lost`: the execution does
--         not hold the job any more, and nothing was written; `cancelled`: a cancel had committed
--         first, and won.
-- Locks:  the jobs, in id order.
-- Index:  jobs_pkey.
--
-- The naive completion is `where id = ...`: it lets a worker that lost its lease end the new
-- owner's job. The next naive one forgets to look at the status: a job that was cancelled while it
-- ran ends completed. Here the status of the *locked* row decides. give_back, stop and bury do the
-- same.
--
-- `j.id = any (job_ids)` is no new condition; it keeps the plan. A session may have planned this
-- while the table was empty. Without the condition that session scans all jobs and looks for each
-- in the batch, until the next analyze: 1,660 pages for ten jobs of 50,000, against 94. With it the
-- table is entered by its primary key, once a job, and the rows found are joined with the batch by
-- a hash. A nested loop, the other join there is, walks through the batch for each of its jobs:
-- 17.8 against 12.4 microseconds a job in batches of 250.
--
-- The history's insert is a function of its own (note_attempts), and results go the same way. That
-- costs a plain completion 0.4 of 9.9 microseconds a job in batches of 250, and 5 of 104 alone:
-- half a percent of a drain, where a job takes 90. sql/README.md has the other figures.
create or replace function {schema}.complete(
    worker_id uuid, job_ids uuid[], execution_ids uuid[], results text[] default null, error_messages text[] default null)
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
    is_plain constant boolean := results is null and error_messages is null;
    ended {schema}.ended_attempt[];
    notable integer;
begin
    with ended as (
        update {schema}.jobs as j
        set status = case when j.status = 'cancelled' then 'cancelled' else 'completed' end,
            completed_at = coalesce(j.completed_at, time_now),
            locked_by = null, current_execution_id = null, lease_expires_at = null, saved = null,
            result = case when is_plain then j.result when j.status <> 'cancelled' then e.result::jsonb end,
            error_message = case when is_plain or j.status = 'cancelled' then j.error_message else e.error end
        from unnest(job_ids, execution_ids, results, error_messages) as e(id, execution_id, result, error)
        where j.id = any (job_ids) and j.id = e.id and j.current_execution_id = e.execution_id
        returning j.status, j.awaited,
            row(j.id, e.execution_id, j.org_id, j.attempts, coalesce(j.started_at, j.created_at), j.status, e.error)
                ::{schema}.ended_attempt as attempt
    )
    select array_agg(t.attempt), count(*) filter (where t.status = 'cancelled' or t.awaited)
    into ended, notable
    from ended as t;
    perform {schema}.note_attempts(complete.worker_id, ended, time_now);
    if pg_relation_size('{schema}.hooks') > 0 then
        perform {schema}.fire_hooks(array(select e.job_id from unnest(ended) as e));
    end if;
    if notable > 0 or coalesce(cardinality(ended), 0) < cardinality(job_ids) then
        perform {schema}.start_successors(job_ids);
        return query select * from {schema}.surprises(job_ids, execution_ids, 'completed');
    end if;
end
$$;
