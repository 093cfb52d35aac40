-- settle: end a batch of executions, each in its own way, each fenced by job id and execution id.
--
-- In:     arrays of one length, in job id order: kinds (complete, retry, snooze, release, cancel, bury), the outcome for the
--         history, delay in seconds (retry, snooze), error message, result (JSON text), reason of death (bury).
-- Out:    surprises only. A job missing from the reply ended as asked. `lost`: the execution no longer holds the job and
--         nothing was written; `cancelled`: a cancel had committed first, and won; `dead`: a retry found no attempt left;
--         `completed`: the handler's own transaction had completed it, and the handler did not know.
-- Locks:  the jobs, in id order.
-- Index:  jobs_pkey.
--
-- The naive completion is `where id = ...`: it lets a worker that lost its lease end the new owner's job. The next naive
-- one forgets to look at the status: a job cancelled while it ran ends completed. Here the status of the *locked* row
-- decides.
create or replace function {schema}.settle(
    worker_id uuid, job_ids uuid[], execution_ids uuid[], kinds text[], outcomes text[], delays double precision[],
    errors text[], results text[], reasons text[])
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
    asked integer := cardinality(job_ids);
    settled integer := 0;
    settled_here integer;
    notable integer := 0;
    notable_here integer;
    dead uuid[];
    dead_executions uuid[];
    dead_orgs uuid[];
    dead_attempts integer[];
    dead_starts timestamptz[];
    dead_outcomes text[];
    dead_errors text[];
    dead_reasons text[];
    dead_awaited uuid[];
    exhausted uuid[];
begin
    if 'complete' = any (kinds) then
        with ended as (
            update {schema}.jobs as j
            set status = case when j.status = 'cancelled' then 'cancelled' else 'completed' end,
                completed_at = coalesce(j.completed_at, {schema}.clock()),
                locked_by = null, current_execution_id = null, lease_expires_at = null,
                result = case when j.status = 'cancelled' then null else e.result::jsonb end,
                error_message = case when j.status = 'cancelled' then j.error_message else e.error end
            from unnest(job_ids, execution_ids, kinds, errors, results) as e(id, execution_id, kind, error, result)
            where e.kind = 'complete' and j.id = any (job_ids) and j.id = e.id and j.current_execution_id = e.execution_id
            returning j.id, e.execution_id, j.org_id, j.attempts, j.started_at, j.created_at, j.status, j.awaited, e.error
        ), history as (
            insert into {schema}.job_executions (
                id, job_id, org_id, attempt, worker_id, outcome, started_at, ended_at, error_message)
            select t.execution_id, t.id, t.org_id, greatest(t.attempts, 1), settle.worker_id, t.status,
                coalesce(t.started_at, t.created_at), {schema}.clock(), t.error
            from ended as t
        )
        select count(*), count(*) filter (where t.status = 'cancelled' or t.awaited)
        into settled, notable
        from ended as t;
    end if;

    if settled < asked and exists (select from unnest(kinds) as k(kind) where k.kind <> 'complete') then
        -- Each row is locked before it is looked at, so all that follows sees one state.
        select array_agg(a.id) filter (where a.dies), array_agg(a.execution_id) filter (where a.dies),
            array_agg(a.org_id) filter (where a.dies), array_agg(a.attempts) filter (where a.dies),
            array_agg(a.started_at) filter (where a.dies), array_agg(a.outcome) filter (where a.dies),
            array_agg(a.error) filter (where a.dies),
            array_agg(a.reason) filter (where a.dies), array_agg(a.id) filter (where a.dies and a.kind = 'retry'),
            array_agg(a.id) filter (where a.dies and a.awaited)
        into dead, dead_executions, dead_orgs, dead_attempts, dead_starts, dead_outcomes, dead_errors, dead_reasons,
            exhausted, dead_awaited
        from (
            select j.id, j.org_id, j.attempts, coalesce(j.started_at, j.created_at) as started_at, j.awaited,
                e.execution_id, e.kind, e.outcome, e.error, coalesce(e.reason, 'exhausted') as reason,
                j.status = 'running' and (e.kind = 'bury' or (e.kind = 'retry' and j.attempts >= j.max_attempts)) as dies
            from unnest(job_ids, execution_ids, kinds, outcomes, errors, reasons)
                as e(id, execution_id, kind, outcome, error, reason)
            join {schema}.jobs as j on j.id = any (job_ids) and j.id = e.id and j.current_execution_id = e.execution_id
            where e.kind <> 'complete'
            for no key update of j
        ) as a;

        if dead is not null then
            perform {schema}.note_attempts(
                settle.worker_id, dead, dead_executions, dead_orgs, dead_attempts, dead_starts, dead_outcomes, dead_errors,
                {schema}.clock());
            perform {schema}.bury(dead, dead_executions, dead_reasons, dead_errors, {schema}.clock());
            settled := settled + cardinality(dead);
            perform pg_notify({schema_text} || '_finished', d.id::text) from unnest(dead_awaited) as d(id);
            return query select d.id, 'dead' from unnest(exhausted) as d(id);
        end if;

        with ended as (
            update {schema}.jobs as j
            set status = case when j.status = 'cancelled' or e.kind in ('cancel', 'bury') then 'cancelled' else 'pending' end,
                completed_at = case when j.status = 'cancelled' or e.kind in ('cancel', 'bury')
                    then coalesce(j.completed_at, {schema}.clock()) end,
                attempts = case when j.status <> 'cancelled' and e.kind in ('snooze', 'release')
                    then greatest(j.attempts - 1, 0) else j.attempts end,
                scheduled_at = case when j.status <> 'cancelled' and e.kind in ('retry', 'snooze')
                    then {schema}.clock() + make_interval(secs => e.delay) else j.scheduled_at end,
                locked_by = null, current_execution_id = null, lease_expires_at = null,
                error_message = coalesce(case when j.status = 'cancelled' then j.error_message end, e.error)
            from unnest(job_ids, execution_ids, kinds, outcomes, delays, errors)
                as e(id, execution_id, kind, outcome, delay, error)
            where e.kind <> 'complete' and j.id = any (job_ids) and j.id = e.id and j.current_execution_id = e.execution_id
            returning j.id, e.execution_id, j.org_id, j.queue_name, j.job_type, j.status, j.awaited, j.started_at, j.created_at,
                j.scheduled_at,
                j.attempts + case when j.status = 'pending' and e.kind in ('snooze', 'release') then 1 else 0 end as attempt,
                case when j.status = 'cancelled' then 'cancelled' else e.outcome end as outcome, e.error
        ), history as (
            insert into {schema}.job_executions (
                id, job_id, org_id, attempt, worker_id, outcome, started_at, ended_at, error_message)
            select t.execution_id, t.id, t.org_id, greatest(t.attempt, 1), settle.worker_id, t.outcome,
                coalesce(t.started_at, t.created_at), {schema}.clock(), t.error
            from ended as t
        ), woken as (
            select {schema}.wake(t.queue_name, min(t.scheduled_at), count(*), null, t.job_type)
            from ended as t
            where t.status = 'pending' and exists (select from {schema}.sleepers)
            group by t.queue_name, t.job_type
        )
        select count(*), count(*) filter (where t.status = 'cancelled' or t.awaited) + (select 0 * count(*) from woken)
        into settled_here, notable_here
        from ended as t;
        settled := settled + settled_here;
        notable := notable + notable_here;
    end if;

    if notable > 0 or settled < asked then
        return query select * from {schema}.surprises(job_ids, execution_ids, kinds);
    end if;
end
$$;
