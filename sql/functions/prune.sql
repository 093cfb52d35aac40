-- prune: delete finished jobs, and their history, that ended longer ago than `older_than_seconds`; one bounded batch.
--
-- In:     `after_id` is where the last batch ended: ids grow with time, so a pass walks the primary key once and is not
--         in the way of pending work.
-- Out:    how many were deleted, and the id to go on from (null: the pass has reached the end).
-- Locks:  the rows, `skip locked`.
create or replace function {schema}.prune(older_than_seconds double precision, after_id uuid, jobs_max integer)
returns table (deleted integer, last_id uuid)
language plpgsql volatile
set plan_cache_mode = force_generic_plan
set jit = off
set enable_seqscan = off
set enable_bitmapscan = off
as $$
#variable_conflict use_column
declare
    before_time timestamptz := {schema}.clock() - make_interval(secs => older_than_seconds);
    seen uuid[];
    ended uuid[];
begin
    select array_agg(b.id order by b.id), coalesce(array_agg(b.id) filter (where b.is_over), '{{}}')
    into seen, ended
    from (
        select j.id, j.completed_at < before_time and not j.is_held as is_over
        from {schema}.jobs as j
        where j.id > coalesce(after_id, '00000000-0000-0000-0000-000000000000')
        order by j.id
        limit jobs_max
    ) as b;
    with locked as materialized (
        select j.id from {schema}.jobs as j
        where j.id = any (ended) and j.completed_at < before_time and not j.is_held
        for update skip locked
    ), gone as (
        delete from {schema}.jobs as j using locked where j.id = any (ended) and j.id = locked.id returning j.id
    ), history as (
        delete from {schema}.job_executions as e using gone where e.job_id = any (ended) and e.job_id = gone.id
    )
    select count(*) into deleted from gone;
    if cardinality(seen) = jobs_max then
        last_id := seen[cardinality(seen)];
    end if;
    return next;
end
$$;
