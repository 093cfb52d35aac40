-- A job may be deleted that waits until another of its unique key has stopped. Nothing here
-- rewrites or reads a table, and what the release before says and asks goes on.

-- The key of such a job goes back. Otherwise as before (0019).
--
-- Locks: the jobs that were deleted, then those whose handlers are stopping. A worker that ends
-- such a job takes them the other way round: PostgreSQL may end one of the two, and workers try
-- again.
create or replace function {schema}.history_goes_with_its_job() returns trigger
language plpgsql
set jit = off
set enable_seqscan = off
-- Letters are looked up by key. If the caller's settings allowed hash joins only, all letters would
-- be read.
set enable_nestloop = on
set enable_hashjoin = off
set enable_mergejoin = off
as $$
declare
    ids uuid[];
    org_ids uuid[];
    is_one_tenant boolean;
begin
    -- In a burial (functions/end/move_to_letters.sql) each job has a letter, and the history
    -- belongs to that.
    if current_setting('pgnotifyq.buries', true) = 'yes' then
        return null;
    end if;
    -- Who deletes a job that runs, deletes what the next one of its unique key waits for.
    if exists (select from gone as g where g.is_held and g.key_passed_on)
        and has_column_privilege('{schema}.jobs', 'waits_for', 'update')
    then
        perform {schema}.start_successors_of(row(g.*)::{schema}.jobs) from gone as g where g.is_held and g.key_passed_on;
    end if;
    -- Who deletes a job that waits so, deletes what kept the next one from starting. The job whose
    -- handler is stopping takes its key back. It was cancelled, so it gives the key to the next
    -- one, which then waits for its end.
    if exists (select from gone as g where g.waits_for is not null and g.key_passed_on is null)
        and has_column_privilege('{schema}.jobs', 'key_passed_on', 'update')
    then
        update {schema}.jobs as j
        set key_passed_on = null
        where j.id in (select g.waits_for from gone as g where g.waits_for is not null and g.key_passed_on is null)
          and j.is_held and j.key_passed_on and j.status = 'cancelled';
    end if;
    select array_agg(g.id), array_agg(g.org_id) into ids, org_ids
    from gone as g
    where not exists (select from {schema}.dead_letter_jobs as d where d.id = g.id and d.org_id = g.org_id);
    if ids is null then
        return null;
    end if;
    is_one_tenant := org_ids[1] = all (org_ids);
    -- A role that may delete jobs and no history leaves the history. That is better than to keep
    -- the jobs. Rights are asked for one by one: of a list, any is enough.
    if has_table_privilege('{schema}.job_executions', 'select') and has_table_privilege('{schema}.job_executions', 'delete') then
        -- Nearly always they are of one tenant. To look for each one's takes longer.
        delete from {schema}.job_executions as e
        where e.job_id = any (ids)
          and e.org_id = case when is_one_tenant then org_ids[1] else org_ids[array_position(ids, e.job_id)] end;
    end if;
    if pg_relation_size('{schema}.job_troubles') > 0 and has_table_privilege('{schema}.job_troubles', 'select')
        and has_table_privilege('{schema}.job_troubles', 'delete')
    then
        delete from {schema}.job_troubles as t
        where t.job_id = any (ids) and t.org_id = org_ids[array_position(ids, t.job_id)];
    end if;
    return null;
end
$$;
