-- claim: take due jobs of some queues for a worker, open their executions and mark them running, in
-- one round trip.
--
-- In:     worker_id      the worker
--         queue_names    queue names in order of preference: a queue is looked at only when those
--                        before it are dry
--         jobs_max       free slots; never more rows than this, under any plan
--         lease_seconds  length of the lease
--         is_asleep      whether the worker is published as a sleeper. Then its rows in `sleepers`
--                        say when it expects the next job
--         after_...      where to go on from instead of looking from the start: the queue,
--                        priority, time and id of the last job of an earlier claim. Jobs before it
--                        are not seen, unless too few are found behind it; runtime/resuming.py says
--                        when that pays.
--         job_types      the job types that the worker has handlers for, and no others are taken;
--                        null: all of them
--         maxima         the max_attempts of each handler, for jobs that say none; 15 where that is
--                        null too
--         bytes_max      of all payloads and saved states together, as far as their size is known
--                        without unpacking them. A first job always fits. 16 MiB: a sixth of a
--                        second over a slow network (100 MB/s), beside a deadline of seconds
--         payload_bytes_max
--                        a payload of more bytes of text is not sent: the worker buries such a job.
--                        Null: all are sent
-- Out:    one row a job, in the order of claiming. First the columns of a claimed job without its
--         saved state and its headers; then two more columns; then those two: workers read columns
--         by place.
--         If fewer than jobs_max were found, one more row, whose `id` is null.
--         `next_due_seconds`: until the earliest job of these queues that was not taken. Null: none
--         is known. Zero: the job is due, and another transaction holds its row, so look again
--         soon.
--         `snapshot_xmin`, which runtime/sleep.py needs: every transaction below it had ended
--         before this claim looked. Null: the worker is asleep, and a time has passed at which it
--         had promised to look.
--         The payload is JSON text: Python's decoder takes a quarter of the time for text that
--         psycopg takes for jsonb. Null: it is larger than payload_bytes_max.
-- Locks:  the claimed rows, `skip locked`; workers never wait on each other. Some more rows are
--         locked and left as they are: jobs that the bytes leave no room for; and, if a claim goes
--         on from an earlier one, jobs that the worker has no handler for.
--         `pauses_lock`, shared (admit.sql).
-- Index:  jobs_claimable, as a range of (queue, priority, scheduled_at <= now);
--         jobs_claimable_by_type if other workers' jobs stand at the head of that range
--         (claim_by_type.sql).
-- Errors: one row that cannot be updated fails the whole claim; then the worker calls claim_apart.
--         Jobs in trouble are passed over.
--
-- The naive claim is one ordered scan of a queue with a filter on scheduled_at. It walks over every
-- future job of a higher priority each time. Here each priority is a range scan of its own: a look
-- finds the next lower priority that has jobs, so the future jobs of a priority are behind the end
-- of its range.
--
-- The naive update is `where id in (select ... limit n for update skip locked)`. Under a nested
-- loop the subselect runs again for each outer row and claims more than n; a materialized CTE runs
-- once.
--
-- The locked rows are then updated by their places in the table (`ctid`), not by their keys: half a
-- microsecond a job less. A row that another transaction changed between the snapshot of this
-- statement and the lock has moved. The update does not find it, so it stays pending, and the next
-- look sees it.
--
-- An execution's id is that of the claim (version 7, so new and random) with the row's number in
-- its last four bytes: a random number for each row took a fifth of the claim where the server
-- reads it from the system one by one.
--
-- Jobs that the worker has no handler for are passed over. They may be very many: jobs of a newer
-- release than the worker's, or of a type that no worker serves. A mere filter walks over all of
-- them at each claim, 100 ms for 200,000. So if such a job stands at the head of the queue, or
-- among as many rows as are wanted, the claim looks at the rest of the queue by type.
--
-- A claim from the start looks at the types first, and locks no job of other types. That look costs
-- 0.3 microseconds a job. A claim that goes on saves it; while a worker is busy, nine of ten claims
-- go on. Such a claim locks the next rows, whatever their type, and updates those that its worker
-- has a handler for. If those are too few, it looks at the queue as from the start, finds the jobs
-- of other types, and goes on by type. It locks at most as many rows of other types as it wants,
-- for as long as the claim takes.
--
-- The bytes are summed as rows are locked. Only a claim that goes on to another priority or queue
-- has to ask what it has taken so far; as a rule the first priority has all that is wanted, or
-- nothing is behind it.
--
-- A job starts when its row is taken, not when the function began: the statement that takes it asks
-- for the time itself. That statement sees what was committed until then. Among this may be the end
-- of an attempt before, which may be later than the function's beginning.
--
-- The settings below pin the plan, because statistics are stale exactly when a queue has just been
-- filled.
--
-- A claim commits without waiting for the disk: losing one in a server crash is the same as a lease
-- lost.
--
-- The earlier forms are dropped. Otherwise a call without the last arguments would fit both.
drop function if exists {schema}.claim(uuid, text[], integer, double precision, boolean);
drop function if exists {schema}.claim(
    uuid, text[], integer, double precision, boolean, text, integer, timestamptz, uuid);
create or replace function {schema}.claim(
    worker_id uuid, queue_names text[], jobs_max integer, lease_seconds double precision, is_asleep boolean default false,
    after_queue text default null, after_priority integer default null, after_time timestamptz default null,
    after_id uuid default null, job_types text[] default null, maxima integer[] default null,
    bytes_max bigint default 16777216, payload_bytes_max bigint default null)
returns table (
    id uuid, current_execution_id uuid, org_id uuid, queue_name text, job_type text, payload text, priority smallint,
    scheduled_at timestamptz, attempts integer, max_attempts integer, unique_key text, created_at timestamptz,
    started_at timestamptz, lease_expires_at timestamptz, next_due_seconds double precision, snapshot_xmin bigint,
    saved text, headers text)
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
    -- Executions have numbers up to this one, with gaps where a row was changed meanwhile.
    numbered integer := 0;
    queue text;
    level integer;
    claimed_level integer;
    bound integer;
    goes_on boolean;
    by_type boolean;
    others_ahead boolean;
    wanted integer;
    is_cut boolean := false;  -- by bytes: there may be more
    one {schema}.claimed;
    room bigint := coalesce(bytes_max, 16777216);
    has_troubles boolean := false;
    from_time timestamptz;
    from_id uuid;
    filter_types text[];
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
    if pg_relation_size('{schema}.pauses') > 0 then
        perform pg_try_advisory_xact_lock_shared({schema}.pauses_lock());
        select a.queue_names, a.job_types, a.maxima into queue_names, job_types, maxima
        from {schema}.admit(queue_names, job_types, maxima) as a;
    end if;
    -- A file without a page has no rows: as a rule nothing is looked up.
    if pg_relation_size('{schema}.job_troubles') > 0 then
        has_troubles := exists (select from {schema}.job_troubles);
    end if;
    <<queues>>
    foreach queue in array queue_names[coalesce(array_position(queue_names, after_queue), 1):] loop
        queue_due := null;
        bound := 32768;
        claimed_level := null;
        by_type := false;
        goes_on := queue = after_queue;
        loop
            if goes_on then
                level := after_priority;
                from_time := after_time;
                from_id := after_id;
            else
                if not by_type then
                    -- The head of the queue. Are there jobs of other types, among as many as are
                    -- wanted?
                    select a.levels[1], a.times[1], a.others
                    into level, level_due, others_ahead
                    from (
                        select array_agg(j.priority) as levels, array_agg(j.scheduled_at) as times,
                            bool_or(not j.job_type = any (job_types)) as others
                        from (
                            select j.priority, j.scheduled_at, j.job_type
                            from {schema}.jobs as j
                            where j.is_claimable and j.queue_name = queue and j.priority < bound
                              and (not has_troubles or not {schema}.is_in_trouble(j.org_id, j.id, time_now))
                            order by j.queue_name, j.priority desc, j.scheduled_at, j.id
                            limit jobs_max - taken + 8
                        ) as j
                    ) as a;
                    exit when level is null;
                    if others_ahead then
                        by_type := true;
                        claimed_level := null;
                    end if;
                end if;
                if by_type then
                    select n.priority, n.scheduled_at into level, level_due
                    from {schema}.next_by_type(queue, bound, job_types, has_troubles, time_now) as n;
                    exit when not found;
                end if;
                -- Either nothing of this priority is due, or the claim has taken from it and
                -- something is left: the next job to fall due, a job whose row is locked, or a job
                -- that had too many bytes. A mere update may have locked the row. If the worker
                -- skipped it and went to sleep, the job would wait for the backstop.
                if level_due > time_now or level = claimed_level then
                    if level_due <= time_now and taken > 0 and not by_type then
                        perform from {schema}.jobs as j
                        where j.is_claimable and j.queue_name = queue and j.priority = level::smallint
                          and {schema}.may_start(j, job_types, has_troubles, time_now)
                        order by j.queue_name, j.priority desc, j.scheduled_at, j.id
                        limit 1
                        for update skip locked;
                        is_cut := found;  -- nobody else has locked it
                        exit queues when is_cut;
                    end if;
                    queue_due := least(queue_due, level_due);
                    bound := level;
                    continue;
                end if;
                from_time := level_due;
                from_id := '00000000-0000-0000-0000-000000000000';
            end if;

            wanted := jobs_max - taken;
            if taken > 0 then
                -- What this claim has taken, by the index on held jobs.
                select coalesce(bytes_max, 16777216) - coalesce(sum({schema}.claim_weight(j.payload, j.saved)), 0)
                into room
                from {schema}.jobs as j
                where j.is_held and j.started_at >= time_now and j.locked_by = claim.worker_id
                  and substring(uuid_send(j.current_execution_id) for 12) = claim_id;
            end if;
            if by_type then
                taken_here := 0;
                for one in
                    select (c.job).*
                    from {schema}.claim_by_type(
                        claim.worker_id, queue, level, wanted, lease_seconds, job_types, maxima, room, payload_bytes_max,
                        has_troubles, time_now, claim_id, numbered) as c
                    order by (c.job).scheduled_at, (c.job).id
                loop
                    if one.id is null then
                        is_cut := true;
                        continue;
                    end if;
                    taken_here := taken_here + 1;
                    return query select one.id, one.current_execution_id, one.org_id, one.queue_name, one.job_type, one.payload,
                        one.priority, one.scheduled_at, one.attempts, one.max_attempts, one.unique_key, one.created_at,
                        one.started_at, one.lease_expires_at, null::double precision, null::bigint, one.saved,
                        one.headers;
                end loop;
            else
                -- A claim that goes on has not looked at the types. Jobs of other types count among
                -- the rows that are wanted, and the scan ends after so many.
                filter_types := case when goes_on then null else job_types end;
                return query
                with due as materialized (
                    select j.ctid as place_in_table, job_types is null or j.job_type = any (job_types) as is_mine,
                        least({schema}.claim_weight(j.payload, j.saved), 2147483647)::integer as weight
                    from {schema}.jobs as j
                    where j.is_claimable and j.queue_name = queue and j.priority = level::smallint
                      and (j.scheduled_at, j.id) >= (from_time, from_id)
                      and {schema}.may_start(j, filter_types, has_troubles, time_now)
                    order by j.queue_name, j.priority desc, j.scheduled_at, j.id
                    limit wanted
                    for update skip locked
                )
                update {schema}.jobs as j
                set status = 'running',
                    attempts = j.attempts + 1,
                    max_attempts = coalesce(j.max_attempts, greatest(
                        coalesce(maxima[array_position(job_types, j.job_type::text)], 15), j.attempts + 1)),
                    locked_by = claim.worker_id,
                    current_execution_id = encode(claim_id || int4send(numbered + due.place), 'hex')::uuid,
                    started_at = due.taken_at,
                    lease_expires_at = due.taken_at + make_interval(secs => lease_seconds),
                    progress = null,
                    progress_message = null
                from (
                    select d.place_in_table, d.weight, row_number() over w::integer as place, sum(d.weight) over w as total,
                        (select {schema}.clock()) as taken_at
                    from due as d
                    where d.is_mine
                    window w as (rows unbounded preceding)
                ) as due
                where j.ctid = due.place_in_table and (due.total <= room or due.place + taken = 1)
                returning j.id, j.current_execution_id, j.org_id, j.queue_name::text, j.job_type::text,
                    case when due.weight <= payload_bytes_max or payload_bytes_max is null
                        or {schema}.fits(j.payload, payload_bytes_max) then j.payload::text end,
                    j.priority, j.scheduled_at, j.attempts, j.max_attempts, j.unique_key, j.created_at, j.started_at,
                    j.lease_expires_at, null::double precision, null::bigint, j.saved::text, j.headers::text;
                get diagnostics taken_here = row_count;
            end if;
            taken := taken + taken_here;
            numbered := numbered + case when taken_here > 0 then wanted else 0 end;
            exit queues when taken >= jobs_max;
            exit queues when is_cut;

            -- The next look sees what is left of this priority. A claim that went on has not seen
            -- all of it, so it takes from this priority again.
            claimed_level := case when not goes_on then level end;
            bound := level + 1;
            goes_on := false;
        end loop;
        dues := dues || case when queue_due > time_now then queue_due else 'infinity' end;
        next_due := least(next_due, queue_due);
    end loop;

    if taken > 0 and pg_relation_size('{schema}.followers') > 0 then
        perform {schema}.tell_followers('started', array_agg(j.id), array_agg(j.attempts::text))
        from {schema}.jobs as j
        where j.is_held and j.started_at >= time_now and j.locked_by = claim.worker_id
          and substring(uuid_send(j.current_execution_id) for 12) = claim_id;
    end if;
    if has_troubles then
        -- A job that was taken is in trouble no more. Others are looked at again at their time.
        if taken > 0 then
            delete from {schema}.job_troubles as t
            using {schema}.jobs as j
            where t.verb = 'claim' and t.look_at <= time_now and j.id = t.job_id and j.locked_by = claim.worker_id and j.is_held;
        end if;
        select least(next_due, min(t.look_at)) into next_due
        from {schema}.job_troubles as t
        join {schema}.jobs as j on j.id = t.job_id
        where t.look_at > time_now and j.status = 'pending' and j.queue_name = any (queue_names)
          and (job_types is null or j.job_type = any (job_types));
    end if;

    if is_cut and taken = 0 then
        next_due := time_now;  -- others hold what would have fitted
    end if;
    if taken < jobs_max and (not is_cut or taken = 0) then
        if is_asleep then
            -- What a sleeper expects is a promise to look at that time, and inserts count on it.
            -- The promise stands until that time, even if the job it was made for is gone. A
            -- promise whose time has passed counts for nobody (wake), and the worker is told of it
            -- (runtime/sleep.py).
            select bool_or(s.expects_at <= time_now), bool_or(s.expects_at > q.due or s.expects_at <= time_now),
                min(case when s.expects_at > time_now then least(s.expects_at, q.due) else q.due end)
            into has_passed, has_changed, promised_at
            from unnest(queue_names, dues) as q(name, due)
            join {schema}.sleepers as s on s.queue_name = q.name and s.worker_id = claim.worker_id;
            if has_passed then
                xmin_before := null;
            end if;
            if has_changed then
                update {schema}.sleepers as s
                set expects_at = q.due
                from unnest(queue_names, dues) as q(name, due)
                where s.queue_name = q.name and s.worker_id = claim.worker_id
                  and (s.expects_at > q.due or s.expects_at <= time_now);
            end if;
            next_due := least(next_due, promised_at);
        end if;
        -- Until PostgreSQL 17 nothing can be subtracted from infinity.
        next_due_seconds := case when next_due <= time_now then 0
            when next_due < 'infinity' then extract(epoch from next_due - time_now) end;
        snapshot_xmin := xmin_before;
        return next;
    elsif exists (select from {schema}.sleepers as s where s.worker_id <> claim.worker_id) then
        -- This worker is full. Other workers are to take what is due behind what it took.
        perform {schema}.wake_able(q.name, claim.worker_id)
        from unnest(queue_names) as q(name);
    end if;
end
$$;

-- payload_weight: the most bytes that a payload can have when it is unpacked, as far as can be told
-- without unpacking it.
--
-- A payload that is not compressed has its own size. A compressed one may have been this many times
-- larger: pglz writes three bytes and a bit for 273 at the most, lz4 one for 255.
create or replace function {schema}.payload_weight(payload jsonb) returns bigint
language sql stable parallel safe
as $$
    select pg_column_size(payload)::bigint * case pg_column_compression(payload) when 'pglz' then 100 when 'lz4' then 255 else 1 end
$$;

-- claim_weight: the same for a job: for its payload, and for what its handler has saved. The saved
-- state has at most as many bytes as its domain allows.
create or replace function {schema}.claim_weight(payload jsonb, saved jsonb) returns bigint
language sql stable parallel safe
as $$
    select {schema}.payload_weight(payload)
        + case when saved is null then 0 else least({schema}.payload_weight(saved), 131072) end
$$;

-- fits: whether the text of a payload has at most so many bytes. The payload is unpacked for that,
-- unless it is too large already as it is stored.
create or replace function {schema}.fits(payload jsonb, bytes_max bigint) returns boolean
language plpgsql stable
as $$
begin
    return pg_column_size(payload) <= bytes_max and octet_length(payload::text) <= bytes_max;
exception
    when program_limit_exceeded or out_of_memory then
        return false;  -- beyond what a text can be
end
$$;
