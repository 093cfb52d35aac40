-- change_all: cancel, delete or edit many jobs, one batch of them.
--
-- In:     action     cancel: what is pending or running, as cancel() does; `why` is the reason.
--                    delete: what no worker holds, with its history.
--                    edit: what waits, as edit() does; `to_queue` is the queue.
--         queue_name, job_type, org_id, status, error_text, created_after, created_before
--                    which jobs (job_fits)
--         after_id   where the batch before ended; null: from the start
--         jobs_max   how many jobs are looked at
-- Out:    how many were changed; how many were refused by a constraint or trigger, and stay as they
--         are; where to go on from, null at the end. A job that may not be changed, because it runs
--         or has ended meanwhile, counts as neither.
-- Errors: what is out of range is refused with PNQ02.
-- Locks:  the jobs, one after the other, in id order, until the batch commits.
-- Index:  jobs_pkey. All batches together read the table once.
--
-- Each batch is a transaction of its caller's. So the caller can stop a bulk between two batches,
-- and go on from the last id later. One pass changes a job once at the most: ids only grow.
create or replace function {schema}.change_all(
    action text, queue_name text default null, job_type text default null, org_id uuid default null,
    status text default null, error_text text default null, created_after timestamptz default null,
    created_before timestamptz default null, why text default null, to_queue text default null,
    priority integer default null, scheduled_at timestamptz default null, delay_seconds double precision default null,
    payload jsonb default null, after_id uuid default null, jobs_max integer default 1000)
returns table (done integer, refused integer, last_id uuid)
language plpgsql volatile
set plan_cache_mode = force_generic_plan
set jit = off
set enable_seqscan = off
set enable_bitmapscan = off
set enable_sort = off
as $$
#variable_conflict use_column
declare
    time_now constant timestamptz := {schema}.clock();
    one record;
    seen integer := 0;
    is_changed boolean;
begin
    if action is null or action not in ('cancel', 'delete', 'edit') then
        raise exception 'action % is not known', quote_nullable(action)
            using errcode = 'PNQ02', hint = 'Use cancel, delete or edit.';
    end if;
    done := 0;
    refused := 0;
    for one in
        select j.id
        from {schema}.jobs as j
        where j.id > coalesce(change_all.after_id, '00000000-0000-0000-0000-000000000000')
          and {schema}.job_fits(
              j, change_all.queue_name, change_all.job_type, change_all.org_id, change_all.status, change_all.error_text,
              change_all.created_after, change_all.created_before, time_now)
        order by j.id
        limit greatest(coalesce(change_all.jobs_max, 0), 0)
    loop
        seen := seen + 1;
        last_id := one.id;
        begin
            set constraints all deferred;
            if action = 'cancel' then
                update {schema}.jobs as j
                set status = 'cancelled', error_message = coalesce(left(change_all.why, 1000), 'cancelled')
                where j.id = one.id and j.status in ('pending', 'running');
                is_changed := found;
            elsif action = 'delete' then
                delete from {schema}.jobs as j where j.id = one.id and not j.is_held;
                is_changed := found;
            else
                is_changed := {schema}.edit(
                    one.id, change_all.to_queue, change_all.priority, change_all.scheduled_at, change_all.delay_seconds,
                    change_all.payload) = 'edited';
            end if;
            set constraints all immediate;
            done := done + is_changed::integer;
        exception
            when others or assert_failure then
                if not {schema}.is_rows_own(sqlstate) or sqlstate = 'PNQ02' then
                    raise;
                end if;
                refused := refused + 1;
        end;
    end loop;
    if seen < change_all.jobs_max or seen = 0 then
        last_id := null;
    end if;
    return next;
end
$$;

-- job_fits: whether a job is one of those that were asked for. Every filter may be null. `status`
-- is a status, or scheduled, retrying, stopping; `error_text` is a part of the error message, in
-- any case.
--
-- It is SQL of one expression, so that the planner puts the expression in its place.
create or replace function {schema}.job_fits(
    job {schema}.jobs, queue_name text, job_type text, org_id uuid, status text, error_text text,
    created_after timestamptz, created_before timestamptz, time_now timestamptz)
returns boolean
language sql stable
as $$
    select (job_fits.queue_name is null or (job).queue_name = job_fits.queue_name)
        and (job_fits.job_type is null or (job).job_type = job_fits.job_type)
        and (job_fits.org_id is null or (job).org_id = job_fits.org_id)
        and (job_fits.status is null
             or {schema}.label((job).status, (job).is_held, (job).attempts, (job).scheduled_at, time_now) = job_fits.status)
        and (job_fits.created_after is null or (job).created_at > job_fits.created_after)
        and (job_fits.created_before is null or (job).created_at < job_fits.created_before)
        and (job_fits.error_text is null or position(lower(job_fits.error_text) in lower((job).error_message)) > 0)
$$;
