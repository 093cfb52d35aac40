-- give_back: end a batch of executions whose jobs are to run again: retry, snooze, release.
--
-- In:     arrays of one length, in job id order: kinds (retry, snooze, release), the outcome for
--         the history, delay in seconds (of release: none), error message.
-- Out:    surprises only. A job missing from the reply ended as asked. `lost`: the execution does
--         not hold the job any more, and nothing was written; `cancelled`: a cancel had committed
--         first, and won; `dead`: a retry found no attempt left; `completed`: the handler's own
--         transaction had completed the job, and the handler did not know.
-- Locks:  the jobs, in id order.
-- Index:  jobs_pkey. `= any (job_ids)` and the join: see complete.sql.
create or replace function {schema}.give_back(
    worker_id uuid, job_ids uuid[], execution_ids uuid[], kinds text[], outcomes text[],
    delays double precision[], error_messages text[])
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
    exhausted {schema}.ended_attempt[];
    exhausted_ids uuid[];
    given_back {schema}.ended_attempt[];
    notable integer;
    awaited_ids uuid[];
begin
    -- Each row is locked before it is looked at, so all that follows sees one state.
    select array_agg(
        row(a.id, a.execution_id, a.org_id, a.attempts, a.started_at, a.outcome, a.error)::{schema}.ended_attempt)
        filter (where a.is_exhausted), array_agg(a.id) filter (where a.is_exhausted)
    into exhausted, exhausted_ids
    from (
        select j.id, e.execution_id, j.org_id, j.attempts, coalesce(j.started_at, j.created_at) as started_at,
            e.outcome, e.error, e.kind = 'retry' and j.status = 'running' and j.attempts >= j.max_attempts as is_exhausted
        from unnest(job_ids, execution_ids, kinds, outcomes, error_messages) as e(id, execution_id, kind, outcome, error)
        join {schema}.jobs as j on j.id = any (job_ids) and j.id = e.id and j.current_execution_id = e.execution_id
        for no key update of j
    ) as a;
    time_now := {schema}.clock();
    if exhausted is not null then
        perform {schema}.note_attempts(give_back.worker_id, exhausted, time_now);
        perform {schema}.move_to_letters(
            exhausted, array_fill('exhausted'::text, array[cardinality(exhausted)]), time_now);
        return query select d.id, 'dead' from unnest(exhausted_ids) as d(id);
    end if;

    with ended as (
        update {schema}.jobs as j
        set status = case when j.status = 'cancelled' then 'cancelled' else 'pending' end,
            attempts = case when j.status <> 'cancelled' and e.kind in ('snooze', 'release')
                then greatest(j.attempts - 1, 0) else j.attempts end,
            scheduled_at = case when j.status <> 'cancelled' and e.kind in ('retry', 'snooze')
                then time_now + make_interval(secs => e.delay) else j.scheduled_at end,
            locked_by = null, current_execution_id = null, lease_expires_at = null,
            error_message = coalesce(case when j.status = 'cancelled' then j.error_message end, e.error)
        from unnest(job_ids, execution_ids, kinds, outcomes, delays, error_messages)
            as e(id, execution_id, kind, outcome, delay, error)
        where j.id = any (job_ids) and j.id = e.id and j.current_execution_id = e.execution_id
          and e.kind in ('retry', 'snooze', 'release')
        returning j.queue_name, j.job_type, j.status, j.scheduled_at, j.awaited,
            row(j.id, e.execution_id, j.org_id,
                j.attempts + case when j.status = 'pending' and e.kind in ('snooze', 'release') then 1 else 0 end,
                coalesce(j.started_at, j.created_at),
                case when j.status = 'cancelled' then 'cancelled' else e.outcome end, e.error)
                ::{schema}.ended_attempt as attempt
    ), woken as (
        select {schema}.wake(t.queue_name, min(t.scheduled_at), count(*), null, t.job_type)
        from ended as t
        where t.status = 'pending' and exists (select from {schema}.sleepers)
        group by t.queue_name, t.job_type
    )
    select array_agg(t.attempt), count(*) filter (where t.status = 'cancelled') + (select 0 * count(*) from woken),
        array_agg((t.attempt).job_id) filter (where t.awaited and t.status = 'pending')
    into given_back, notable, awaited_ids
    from ended as t;
    perform {schema}.note_attempts(give_back.worker_id, given_back, time_now);
    if pg_relation_size('{schema}.hooks') > 0 then
        perform {schema}.fire_hooks(array(
            select e.job_id from unnest(given_back) as e where e.outcome not in ('snoozed', 'released')));
    end if;
    if awaited_ids is not null then  -- somebody waits until it runs no more
        perform {schema}.announce_end(d.id) from unnest(awaited_ids) as d(id);
    end if;
    if notable > 0
        or coalesce(cardinality(exhausted), 0) + coalesce(cardinality(given_back), 0) < cardinality(job_ids)
    then
        perform {schema}.start_successors(job_ids);
        return query select * from {schema}.surprises(job_ids, execution_ids, null);
    end if;
end
$$;
