-- claim: take due jobs of some queues for a worker, open their executions and mark them running, in one round trip.
--
-- In:     for_worker     the worker
--         from_queues    queue names in order of preference: a queue is looked at only when those before it are dry
--         jobs_max       free slots; never more rows than this, under any plan
--         for_seconds    length of the lease
--         is_asleep      whether the worker is published as a sleeper: its rows then say what it expects next
--         after_...      where to go on from instead of looking from the start: the queue, priority, time and id of the last
--                        job of an earlier claim. What comes before it is not seen; runtime/resuming.py says when that pays.
-- Out:    one row a job, in the order of claiming. When fewer than jobs_max were found, one more row whose `id` is null:
--         `next_due_seconds` until the earliest job of these queues that was not taken (null: none known; zero: it is due,
--         and somebody else's transaction holds its row, so look again soon), and
--         `snapshot_xmin`, which runtime/sleep.py needs: every transaction below it had ended before this claim looked. Null
--         when a time has passed that the worker, asleep, had promised to look at.
--         The payload is JSON text: Python's decoder takes a quarter of the time for text that psycopg takes for jsonb.
-- Locks:  the claimed rows, `skip locked`; workers never wait on each other.
-- Index:  jobs_claimable, as a range of (queue, priority, scheduled_at <= now).
--
-- The naive claim is one ordered scan of a queue with a filter on scheduled_at. It walks over every future job of a
-- higher priority each time. Here each priority is a range scan of its own: a probe finds the next lower priority that
-- has jobs, so the future jobs of a priority are behind the end of its range.
--
-- The naive update is `where id in (select ... limit n for update skip locked)`. Under a nested loop the subselect runs
-- again for each outer row and claims more than n; a materialized CTE runs once.
--
-- An execution's id is that of the claim (version 7, so new and random) with the row's number in its last four bytes: a random
-- number for each row took a fifth of the claim where the server reads it from the system one by one.
--
-- The plan is pinned by the settings below, for statistics are stale exactly when a queue has just been filled.
-- A claim commits without waiting for the disk: losing one in a server crash is the same as a lease lost.
-- Its earlier form, without after_...: beside this one, a call that leaves those out would fit both.
drop function if exists {schema}.claim(uuid, text[], integer, double precision, boolean);
create or replace function {schema}.claim(
    for_worker uuid, from_queues text[], jobs_max integer, for_seconds double precision, is_asleep boolean default false,
    after_queue text default null, after_priority integer default null, after_time timestamptz default null,
    after_id uuid default null)
returns table (
    id uuid, current_execution_id uuid, org_id uuid, queue_name text, job_type text, payload text, priority smallint,
    scheduled_at timestamptz, attempts integer, max_attempts integer, unique_key text, created_at timestamptz,
    started_at timestamptz, lease_expires_at timestamptz, next_due_seconds double precision, snapshot_xmin bigint)
language plpgsql volatile
set plan_cache_mode = force_generic_plan
set jit = off
set enable_seqscan = off
set enable_bitmapscan = off
set enable_sort = off
set enable_hashjoin = off
set enable_mergejoin = off
as $$
#variable_conflict use_column
declare
    xmin_before bigint := pg_snapshot_xmin(pg_current_snapshot())::text::bigint;
    time_now timestamptz := {schema}.clock();
    claim_id bytea := substring(uuid_send({schema}.new_id()) for 12);
    taken integer := 0;
    taken_here integer;
    queue text;
    level integer;
    claimed_level integer;
    bound integer;
    goes_on boolean;
    from_time timestamptz;
    from_id uuid;
    next_due timestamptz;
    queue_due timestamptz;
    level_due timestamptz;
    dues timestamptz[] := '{{}}';
    has_passed boolean;
    has_changed boolean;
    promised_at timestamptz;
begin
    perform set_config('synchronous_commit', 'off', true);
    jobs_max := coalesce(jobs_max, 0);  -- `limit null` has no limit
    <<queues>>
    foreach queue in array from_queues[coalesce(array_position(from_queues, after_queue), 1):] loop
        queue_due := null;
        bound := 32768;
        claimed_level := null;
        goes_on := queue = after_queue;
        loop
            if goes_on then
                level := after_priority;
                from_time := after_time;
                from_id := after_id;
            else
                select j.priority, j.scheduled_at into level, level_due
                from {schema}.jobs as j
                where j.is_claimable and j.queue_name = queue and j.priority < bound
                order by j.queue_name, j.priority desc, j.scheduled_at, j.id
                limit 1;
                exit when not found;
                -- Nothing of this priority is due, or it is what was left of it: the next to fall due, or a job whose row is locked.
                -- Skipping a locked row and going to sleep over it would lose it until the backstop, when it was locked by a
                -- mere update.
                if level_due > time_now or level = claimed_level then
                    queue_due := least(queue_due, level_due);
                    bound := level;
                    continue;
                end if;
                from_time := '-infinity';
                from_id := '00000000-0000-0000-0000-000000000000';
            end if;

            return query
            with due as materialized (
                select j.id
                from {schema}.jobs as j
                where j.is_claimable and j.queue_name = queue and j.priority = level::smallint
                  and j.scheduled_at <= time_now and (j.scheduled_at, j.id) > (from_time, from_id)
                order by j.queue_name, j.priority desc, j.scheduled_at, j.id
                limit jobs_max - taken
                for update skip locked
            )
            update {schema}.jobs as j
            set status = 'running',
                attempts = j.attempts + 1,
                locked_by = for_worker,
                current_execution_id = encode(claim_id || int4send(taken + due.place), 'hex')::uuid,
                started_at = time_now,
                lease_expires_at = time_now + make_interval(secs => for_seconds),
                progress = null,
                progress_message = null
            from (select d.id, row_number() over ()::integer as place from due as d) as due
            where j.id = due.id
            returning j.id, j.current_execution_id, j.org_id, j.queue_name::text, j.job_type::text, j.payload::text, j.priority,
                j.scheduled_at, j.attempts, j.max_attempts, j.unique_key, j.created_at, j.started_at,
                j.lease_expires_at, null::double precision, null::bigint;
            get diagnostics taken_here = row_count;
            taken := taken + taken_here;
            exit queues when taken >= jobs_max;

            -- What is left of this priority is seen by the next probe; behind `after_...` nobody asks.
            claimed_level := level;
            bound := level + case when goes_on then 0 else 1 end;
            goes_on := false;
        end loop;
        dues := dues || case when queue_due > time_now then queue_due else 'infinity' end;
        next_due := least(next_due, queue_due);
    end loop;

    if taken < jobs_max then
        if is_asleep then
            -- What a sleeper expects is a promise to look then, and inserts count on it: it stands until that time, even if the
            -- job it was made for is gone. One that has passed counts for nobody (wake), and the worker is told (runtime/sleep.py).
            select bool_or(s.expects_at <= time_now), bool_or(s.expects_at > q.due or s.expects_at <= time_now),
                min(case when s.expects_at > time_now then least(s.expects_at, q.due) else q.due end)
            into has_passed, has_changed, promised_at
            from unnest(from_queues, dues) as q(name, due)
            join {schema}.sleepers as s on s.queue_name = q.name and s.worker_id = for_worker;
            if has_passed then
                xmin_before := null;
            end if;
            if has_changed then
                update {schema}.sleepers as s
                set expects_at = q.due
                from unnest(from_queues, dues) as q(name, due)
                where s.queue_name = q.name and s.worker_id = for_worker and (s.expects_at > q.due or s.expects_at <= time_now);
            end if;
            next_due := least(next_due, nullif(promised_at, 'infinity'));
        end if;
        return query select
            null::uuid, null::uuid, null::uuid, null::text, null::text, null::text, null::smallint, null::timestamptz,
            null::integer, null::integer, null::text, null::timestamptz, null::timestamptz, null::timestamptz,
            case when next_due is not null then greatest(extract(epoch from next_due - time_now), 0) end::double precision,
            xmin_before;
    elsif exists (select from {schema}.sleepers as s where s.worker_id <> for_worker) then
        -- This worker is full. Whatever is due behind what it took is for somebody else.
        perform {schema}.wake(q.name, time_now, 1)
        from unnest(from_queues) as q(name)
        where {schema}.has_due(q.name);
    end if;
end
$$;
