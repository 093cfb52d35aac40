-- keep_logs: write what the handlers of some executions have logged so far: the first lines and the
-- last. Asked while they run, and before they are settled.
--
-- In:     arrays of one length, in job id order: jobs, executions, attempts; `heads`, `tails`:
--         arrays of JSON as text, null: as it was; `left_out`: how many lines between the two are
--         gone.
-- Out:    nothing. A job that is gone has no log any more.
-- Locks:  the rows of the logs.
-- Index:  jobs_pkey, job_logs_pkey.
--
-- The row is the execution's, and no other execution writes it. So it is not fenced: if an
-- execution has lost its job, what it has logged is still worth keeping.
create or replace function {schema}.keep_logs(
    job_ids uuid[], execution_ids uuid[], attempts integer[], heads text[], tails text[], left_out bigint[])
returns void
language plpgsql volatile
set plan_cache_mode = force_generic_plan
set jit = off
set enable_seqscan = off
set enable_bitmapscan = off
as $$
#variable_conflict use_column
begin
    perform set_config('synchronous_commit', 'off', true);
    insert into {schema}.job_logs as l (org_id, job_id, execution_id, attempt, head, tail, lines_left_out)
    select j.org_id, j.id, e.execution_id, e.attempt, e.head, e.tail, coalesce(e.lines_left_out, 0)
    from unnest(job_ids, execution_ids, attempts, heads, tails, left_out)
        as e(id, execution_id, attempt, head, tail, lines_left_out)
    join {schema}.jobs as j on j.id = any (job_ids) and j.id = e.id
    where e.execution_id is not null and e.attempt is not null
    order by j.id
    on conflict on constraint job_logs_pkey do update
    set head = coalesce(excluded.head, l.head), tail = coalesce(excluded.tail, l.tail),
        lines_left_out = excluded.lines_left_out, kept_at = {schema}.clock();
    if pg_relation_size('{schema}.followers') > 0 then
        perform {schema}.tell_followers('logged', job_ids);
    end if;
end
$$;
