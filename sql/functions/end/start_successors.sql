-- start_successors: let successors go. A successor has got the unique key of a job that was
-- cancelled while it ran, and waits until that job's handler has ended (pass_key.sql).
--
-- In:     jobs; those that are still held, or have no successor, are passed over.
-- Locks:  the successors. The callers hold the rows of the jobs.
-- Index:  jobs_pkey, jobs_unique_key.
--
-- The naive way is one update of all jobs that wait. A successor may be superseded itself at that
-- moment. Then the update waits for its row and finds it cancelled. The next successor is not in
-- the update's snapshot, and would wait for ever. So the function looks again.
create or replace function {schema}.start_successors(job_ids uuid[]) returns void
language plpgsql volatile
set plan_cache_mode = force_generic_plan
set jit = off
set enable_seqscan = off
set enable_bitmapscan = off
set enable_hashjoin = off
set enable_mergejoin = off
as $$
begin
    perform {schema}.start_successors_of(h.job)
    from (
        select j as job from {schema}.jobs as j where j.id = any (job_ids) and j.key_passed_on and not j.is_held order by j.id
    ) as h;
end
$$;

-- start_successors_of: the same for one job. Its row may be gone, if it was deleted while its
-- handler ran; then history_goes_with_its_job calls this. Else its successor would wait for ever.
create or replace function {schema}.start_successors_of(job {schema}.jobs) returns void
language plpgsql volatile
set plan_cache_mode = force_generic_plan
set jit = off
set enable_seqscan = off
set enable_bitmapscan = off
set enable_hashjoin = off
set enable_mergejoin = off
as $$
declare
    time_now timestamptz;
begin
    loop
        perform
        from {schema}.jobs as j
        where j.org_id = (job).org_id and {schema}.key_scope(j) = {schema}.key_scope(job)
          and j.unique_key = (job).unique_key and {schema}.holds_key(j) and j.waits_for = (job).id;
        exit when not found;
        time_now := {schema}.clock();
        -- This wakes a worker (jobs_wake_after_reschedule).
        update {schema}.jobs as j
        set waits_for = null,
            due_after_wait = null,
            scheduled_at = case when j.status = 'pending' then coalesce(j.due_after_wait, time_now) else j.scheduled_at end
        where j.org_id = (job).org_id and {schema}.key_scope(j) = {schema}.key_scope(job)
          and j.unique_key = (job).unique_key and {schema}.holds_key(j) and j.waits_for = (job).id;
    end loop;
end
$$;
