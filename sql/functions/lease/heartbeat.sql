-- heartbeat: a sign of life of a worker, and the renewal of the leases that need it.
--
-- In:     the worker; the leases to renew, in job id order; the length of the lease in seconds.
-- Out:    surprises only. `cancelled`: the job is still held, and its handler shall stop (with the
--         message that the canceller left). `lost`: the execution does not hold the job any more,
--         and nothing was renewed. `unrenewed`: the job is still held, and its row could not be
--         written now: another transaction holds it, or a trigger of the user's refuses; `why` says
--         it. The other leases are renewed all the same.
-- Locks:  the jobs, in id order, before the expiry is computed: an update that waits for a row lock
--         would store an expiry counted from before the wait.
--
-- The lost ones are found by a hashed subplan, which no planner setting turns off; a nested loop
-- took 2.3 s for 5,000 leases. `= any (job_ids)` and the join: see complete.sql.
create or replace function {schema}.heartbeat(
    worker_id uuid, job_ids uuid[], execution_ids uuid[], lease_seconds double precision)
returns table (job_id uuid, became text, why text)
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
    is_refused boolean := false;
    said text;
    held record;
begin
    perform set_config('synchronous_commit', 'off', true);
    -- If another transaction locks one row, the other jobs must not lose their leases for that: the
    -- whole exchange has a sixth of a lease, 5 s at most (runtime/worker.py). A lock may take half
    -- of that, 2 s at most.
    perform set_config('lock_timeout', greatest(least(2000, lease_seconds * 1000 / 12), 1)::integer::text, true);
    begin
        update {schema}.worker_heartbeats as w
        set last_beat_at = {schema}.clock(), session_lost_at = null
        where w.worker_id = heartbeat.worker_id;

        return query
        with held as materialized (
            select j.id, j.status, j.error_message
            from unnest(job_ids, execution_ids) as e(id, execution_id)
            join {schema}.jobs as j on j.id = any (job_ids) and j.id = e.id and j.current_execution_id = e.execution_id
            for no key update of j
        ), renewed as (
            update {schema}.jobs as j
            set lease_expires_at = {schema}.clock() + make_interval(secs => lease_seconds)
            from held
            where j.id = any (job_ids) and j.id = held.id
            returning j.id
        )
        select held.id, 'cancelled', left(held.error_message, 1000)
        from held
        where held.status = 'cancelled' and held.id in (select renewed.id from renewed)
        union all
        select held.id, 'unrenewed', 'a trigger or rule on the table leaves the row out'
        from held
        where held.id not in (select renewed.id from renewed)
        union all
        select e.id, 'lost', null
        from unnest(job_ids) as e(id)
        where e.id not in (select held.id from held);
        set constraints all immediate;
    exception
        when others or assert_failure or query_canceled then
            -- If a single lease was asked for, and a trigger of the user's stands still, the
            -- statement was cancelled because of that row.
            if sqlstate = '57014' and cardinality(job_ids) = 1 then
                return query select job_ids[1], 'unrenewed', left(sqlerrm, 500);
                return;
            end if;
            if not {schema}.is_rows_own(sqlstate) then
                raise;
            end if;
            is_refused := true;
    end;
    if is_refused then
        return query select * from {schema}.heartbeat_apart(heartbeat.worker_id, job_ids, execution_ids, lease_seconds);
    end if;
end
$$;

-- heartbeat_apart: the same, one row after the other, each in a subtransaction; rows that another
-- transaction holds are passed over.
create or replace function {schema}.heartbeat_apart(
    worker_id uuid, job_ids uuid[], execution_ids uuid[], lease_seconds double precision)
returns table (job_id uuid, became text, why text)
language plpgsql volatile
set jit = off
set enable_seqscan = off
set enable_bitmapscan = off
set lock_timeout = '20ms'
as $$
#variable_conflict use_column
declare
    held_status text;
    held_why text;
begin
    begin
        update {schema}.worker_heartbeats as w
        set last_beat_at = {schema}.clock(), session_lost_at = null
        where w.worker_id = heartbeat_apart.worker_id;
    exception
        when others or assert_failure then
            if not {schema}.is_rows_own(sqlstate) then
                raise;
            end if;
    end;
    for place in 1 .. coalesce(cardinality(job_ids), 0) loop
        job_id := job_ids[place];
        became := null;
        why := null;
        begin
            set constraints all deferred;
            select j.status, left(j.error_message, 1000) into held_status, held_why
            from {schema}.jobs as j
            where j.id = job_ids[place] and j.current_execution_id = execution_ids[place]
            for no key update skip locked;
            if found then
                update {schema}.jobs as j
                set lease_expires_at = {schema}.clock() + make_interval(secs => lease_seconds)
                where j.id = job_ids[place] and j.current_execution_id = execution_ids[place];
                if not found then
                    perform {schema}.refuse_unwritten();
                end if;
                if held_status = 'cancelled' then
                    became := 'cancelled';
                    why := held_why;
                end if;
            elsif exists (
                select from {schema}.jobs as j where j.id = job_ids[place] and j.current_execution_id = execution_ids[place])
            then
                became := 'unrenewed';
                why := 'somebody holds the row';
            else
                became := 'lost';
            end if;
            set constraints all immediate;
        exception
            when others or assert_failure then
                if not {schema}.is_rows_own(sqlstate) then
                    raise;
                end if;
                became := 'unrenewed';
                why := left(sqlerrm, 500);
        end;
        if became is not null then
            return next;
        end if;
    end loop;
end
$$;
