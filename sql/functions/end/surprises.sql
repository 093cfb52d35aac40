-- surprises: after a batch was settled, find by key what did not end as asked, and announce ends
-- that somebody waits for.
--
-- In:     jobs and executions; `outcome`: the one that was asked for, if it is completed or
--         cancelled; else null.
-- Out:    `lost`, `cancelled` or `completed`, as complete.sql and give_back.sql say.
-- Locks:  none.
-- Index:  jobs_pkey, job_executions_pkey.
--
-- An execution may have ended before, in a batch whose reply was lost: its id is in the history. If
-- a reclaimer closed an execution, the history has it as lost. An execution is `completed` if its
-- handler's own transaction completed it; the handler was not told of the commit, and failed.
create or replace function {schema}.surprises(
    job_ids uuid[], execution_ids uuid[], outcome text default 'completed')
returns table (job_id uuid, became text)
language plpgsql volatile
set jit = off
set enable_seqscan = off
set enable_bitmapscan = off
as $$
#variable_conflict use_column
begin
    perform {schema}.announce_end(j.id)
    from {schema}.jobs as j
    where j.id = any (job_ids) and j.awaited and j.status in ('completed', 'cancelled') and not j.is_held;

    return query
    select e.id, case when h.outcome in ('cancelled', 'completed') then h.outcome else 'lost' end
    from unnest(job_ids, execution_ids) as e(id, execution_id)
    left join {schema}.job_executions as h on h.job_id = any (job_ids) and h.job_id = e.id and h.id = e.execution_id
    where h.outcome is null or h.outcome = 'lost'
        or (h.outcome in ('cancelled', 'completed') and h.outcome is distinct from surprises.outcome);
end
$$;
