-- prune: delete finished jobs, and their history, that ended longer ago than they are kept; one
-- bounded batch.
--
-- In:     `older_than_seconds` is how long the jobs of `queue_names` are kept (null: of all
--         queues), where the table `retention` does not say otherwise. What that table says counts
--         for every queue. `after_id` is where the last batch ended: ids grow with time, so a pass
--         walks the primary key once and is not in the way of pending work.
-- Out:    how many were deleted, and the id to go on from (null: the pass has reached the end).
-- Locks:  the rows, `skip locked`. Their history goes by a trigger.
--
-- If a batch cannot be deleted (a table of the user's refers to one of its jobs, say), its jobs are
-- taken one by one. A job that cannot be deleted is put aside (job_troubles).

-- The earlier form is dropped. Otherwise a call without the last argument would fit both.
drop function if exists {schema}.prune(double precision, uuid, integer);
create or replace function {schema}.prune(
    older_than_seconds double precision, after_id uuid, jobs_max integer, queue_names text[] default null)
returns table (deleted integer, last_id uuid)
language plpgsql volatile
set plan_cache_mode = force_generic_plan
set jit = off
set enable_seqscan = off
set enable_bitmapscan = off
set lock_timeout = '100ms'  -- for locks that triggers of the user's want; rows are not waited for
as $$
#variable_conflict use_column
declare
    time_now timestamptz := {schema}.clock();
    seen uuid[];
    ended uuid[];
    has_troubles boolean := exists (select from {schema}.job_troubles);
    one uuid;
    org uuid;
    state text;
    said text;
begin
    select array_agg(b.id order by b.id), coalesce(array_agg(b.id) filter (where b.is_over), '{{}}')
    into seen, ended
    from (
        select j.id, not j.is_held and j.completed_at < time_now - make_interval(secs => coalesce(
                (select k.keep_seconds from {schema}.kept(j.queue_name, j.status) as k),
                case when queue_names is null or j.queue_name = any (queue_names) then older_than_seconds end))
            and coalesce(j.unique_until <= time_now, true)  -- a period outlasts its job
            and not (has_troubles and {schema}.is_in_trouble(j.org_id, j.id, time_now)) as is_over
        from {schema}.jobs as j
        where j.id > coalesce(after_id, '00000000-0000-0000-0000-000000000000')
        order by j.id
        limit jobs_max
    ) as b;
    begin
        with locked as materialized (
            select j.id from {schema}.jobs as j
            where j.id = any (ended) and j.completed_at is not null and not j.is_held
            for update skip locked
        ), gone as (
            delete from {schema}.jobs as j using locked where j.id = any (ended) and j.id = locked.id returning j.id
        )
        select count(*) into deleted from gone;
        set constraints all immediate;
    exception
        when others or assert_failure or query_canceled then
            -- If a single job was asked for, and a trigger of the user's stands still, the
            -- statement was cancelled because of that job.
            if not ({schema}.is_rows_own(sqlstate) or (sqlstate = '57014' and jobs_max = 1)) then
                raise;
            end if;
            if sqlstate = '57014' then
                get stacked diagnostics said = message_text;
                perform {schema}.note_trouble(j.org_id, j.id, 'prune', '57014', said) from {schema}.jobs as j where j.id = any (ended);
                ended := '{{}}';
            end if;
            deleted := null;
    end;
    if deleted is null then
        deleted := 0;
        foreach one in array ended loop
            select j.org_id into org
            from {schema}.jobs as j
            where j.id = one and j.completed_at is not null and not j.is_held
            for update skip locked;
            continue when not found;
            begin
                set constraints all deferred;
                delete from {schema}.jobs as j where j.id = one;
                if not found then
                    perform {schema}.refuse_unwritten();
                end if;
                set constraints all immediate;
                deleted := deleted + 1;
            exception
                when others or assert_failure then
                    get stacked diagnostics state = returned_sqlstate, said = message_text;
                    if not {schema}.is_rows_own(state) then
                        raise;
                    end if;
                    perform {schema}.note_trouble(org, one, 'prune', state, said);
            end;
        end loop;
    end if;
    if cardinality(seen) = jobs_max then
        last_id := seen[cardinality(seen)];
    end if;
    return next;
end
$$;
