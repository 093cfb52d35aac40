-- complete: end a batch of executions as completed, without result or message: the outcome of most jobs, on the shortest way.
-- As settle (which see) does for all others: fenced, the locked row's status decides, surprises only.
--
-- `j.id = any (job_ids)` says nothing new, and keeps the plan. Without it a session that planned this while the table was empty
-- scans all jobs and looks for each in the batch, until the next analyze: 1,660 pages for ten jobs of 50,000, against 94. With
-- it the table is entered by its primary key, once a job, and what is found is joined with the batch by a hash. A nested loop,
-- the other join there is, walks through the batch for each of its jobs: 17.8 against 12.4 microseconds a job in batches of 250.
create or replace function {schema}.complete(worker_id uuid, job_ids uuid[], execution_ids uuid[])
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
    time_now timestamptz := {schema}.clock();
    settled integer;
    notable integer;
begin
    with ended as (
        update {schema}.jobs as j
        set status = case when j.status = 'cancelled' then 'cancelled' else 'completed' end,
            completed_at = coalesce(j.completed_at, time_now),
            locked_by = null, current_execution_id = null, lease_expires_at = null
        from unnest(job_ids, execution_ids) as e(id, execution_id)
        where j.id = any (job_ids) and j.id = e.id and j.current_execution_id = e.execution_id
        returning j.id, e.execution_id, j.org_id, j.attempts, j.started_at, j.created_at, j.status, j.awaited
    ), history as (
        insert into {schema}.job_executions (id, job_id, org_id, attempt, worker_id, outcome, started_at, ended_at)
        select t.execution_id, t.id, t.org_id, greatest(t.attempts, 1), complete.worker_id, t.status,
            coalesce(t.started_at, t.created_at), time_now
        from ended as t
    )
    select count(*), count(*) filter (where t.status = 'cancelled' or t.awaited)
    into settled, notable
    from ended as t;
    if settled < cardinality(job_ids) or notable > 0 then
        return query select * from {schema}.surprises(job_ids, execution_ids);
    end if;
end
$$;
