-- report_progress: how far an execution has come. Fenced; a heap-only update that need not reach
-- the disk.
create or replace function {schema}.report_progress(job_id uuid, execution_id uuid, fraction real, message text) returns boolean
language plpgsql volatile
set jit = off
set enable_seqscan = off
set enable_bitmapscan = off
as $$
declare
    attempt integer;
begin
    perform set_config('synchronous_commit', 'off', true);
    update {schema}.jobs as j
    set progress = fraction, progress_message = left(message, 1000)
    where j.id = report_progress.job_id and j.current_execution_id = report_progress.execution_id
    returning j.attempts into attempt;
    if attempt is null then
        return false;
    end if;
    if pg_relation_size('{schema}.followers') > 0 then
        perform {schema}.tell_followers('progress', array[report_progress.job_id], array[concat_ws(' ', attempt, fraction)]);
    end if;
    return true;
end
$$;

-- report_all: the same for some executions, in job id order. An execution that does not hold its
-- job any more is left out.
--
-- Locks:  the jobs, in id order.
-- Index:  jobs_pkey. `= any (job_ids)` and the join: see complete.sql.
create or replace function {schema}.report_all(job_ids uuid[], execution_ids uuid[], fractions real[], messages text[]) returns void
language plpgsql volatile
set plan_cache_mode = force_generic_plan
set jit = off
set enable_seqscan = off
set enable_bitmapscan = off
set enable_nestloop = off
set enable_mergejoin = off
as $$
declare
    told_ids uuid[];
    told text[];
begin
    perform set_config('synchronous_commit', 'off', true);
    with reported as (
        update {schema}.jobs as j
        set progress = e.fraction, progress_message = left(e.message, 1000)
        from unnest(job_ids, execution_ids, fractions, messages) as e(id, execution_id, fraction, message)
        where j.id = any (job_ids) and j.id = e.id and j.current_execution_id = e.execution_id
        returning j.id, concat_ws(' ', j.attempts, e.fraction) as said
    )
    select array_agg(r.id), array_agg(r.said) into told_ids, told from reported as r;
    if told_ids is not null and pg_relation_size('{schema}.followers') > 0 then
        perform {schema}.tell_followers('progress', told_ids, told);
    end if;
end
$$;
