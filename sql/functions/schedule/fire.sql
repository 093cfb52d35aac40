-- fire_schedules: enqueue the jobs of ticks that are due, and move schedules on to their next tick.
--
-- In:     moves  an array of objects, one a schedule:
--                schedule_id, version, next_at   as the worker has read them
--                ticks          those to enqueue a job for, none of them later than the next 250 ms
--                next_to        the tick after them
--                error_message  why the rule cannot be followed; then it is tried again later
-- Out:    one row a tick: the job, and what became of the tick: enqueued, waiting, skipped; or, of
--         a schedule, failed.
-- Locks:  the schedules, `skip locked`, in order of id: if a row is locked, another worker has it.
--         Then what enqueue locks. Where a schedule cancels or awaits the run before, that job too;
--         such a schedule comes alone, so that no order of jobs is broken.
--
-- Three means see to it that each tick is fired once. The row is locked. The tick that the worker
-- has read must still be the next one (`version`, `next_at`): the worker that comes second finds
-- another. And the index of schedule_ticks has each tick once: that also holds against a backfill.
--
-- The commit does not wait for the disk: that took five of the nine milliseconds to a handler's
-- start. If the server crashes in that moment, it forgets the job, the tick, and the move to the
-- next one, all three: so another worker fires the tick again. Once a job's end is durable, so is
-- its tick, because the log is written in order.
--
-- A worker calls this a little ahead of the tick. When all but the commit is done, the function
-- waits for the tick, and returns. So its own time makes no job late: that was 4 of the 7 ms from a
-- tick to its handler, and half of the 55 ms for fifty schedules of one tick. What is written ahead
-- has the tick's time (`pgnotifyq.clock`): the job's times are the tick, and its wake-up names the
-- job as one that is due. A session that pauses or changes the schedule meanwhile waits for this. A
-- run that ends in these last milliseconds has not ended, for `overlap`. The setting is written in
-- ISO and UTC: in other styles a text names the zone, and the same name is read as another zone.
--
-- If one schedule's job is refused (by a trigger of the user's, say), that is an error of that
-- schedule alone: it is noted there, and the schedule is tried again later.
create or replace function {schema}.fire_schedules(moves jsonb)
returns table (schedule_id uuid, tick timestamptz, job_id uuid, became text)
language plpgsql volatile
set jit = off
as $$
#variable_conflict use_column
declare
    retry_seconds constant integer := 60;
    ahead_max constant interval := '250 milliseconds';
    time_now timestamptz := {schema}.clock();
    ready_at timestamptz := time_now;
    clock_before text := coalesce(current_setting('pgnotifyq.clock', true), '');
    move record;
    one {schema}.schedules;
    told record;
    ticks timestamptz[];
    job_ids uuid[];
    words text[];
    said text;
begin
    perform set_config('synchronous_commit', 'off', true);
    for move in
        select m.*
        from jsonb_to_recordset(fire_schedules.moves) as m(
            schedule_id uuid, version integer, next_at timestamptz, next_to timestamptz, ticks timestamptz[], error_message text)
        where not exists (select from unnest(m.ticks) as t(tick) where t.tick is null or t.tick > time_now + ahead_max)
        order by m.schedule_id
    loop
        select s.* into one
        from {schema}.schedules as s
        where s.id = move.schedule_id and s.version = move.version and s.next_at is not distinct from move.next_at
          and s.paused_at is null
        for no key update skip locked;
        continue when not found;
        if move.error_message is not null then
            update {schema}.schedules as s
            set retry_at = time_now + make_interval(secs => retry_seconds), error_message = left(move.error_message, 1000)
            where s.id = one.id;
            continue;
        end if;
        ready_at := greatest(ready_at, (select max(t.tick) from unnest(move.ticks) as t(tick)));
        if ready_at > time_now then
            perform set_config(
                'pgnotifyq.clock', to_char(ready_at at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"+00:00"'), true);
        end if;
        said := null;
        begin
            ticks := '{{}}';
            job_ids := '{{}}';
            words := '{{}}';
            foreach tick in array coalesce(move.ticks, '{{}}') loop
                select f.job_id, f.became into told from {schema}.fire_tick(one.id, tick) as f;
                ticks := ticks || tick;
                job_ids := job_ids || told.job_id;
                words := words || told.became;
            end loop;
            update {schema}.schedules as s
            set next_at = coalesce(move.next_to, 'infinity'), retry_at = null, error_message = null,
                done_to = coalesce(ticks[cardinality(ticks)], s.done_to), last_at = coalesce(ticks[cardinality(ticks)], s.last_at)
            where s.id = one.id;
            if 'waiting' = any (words) then
                perform {schema}.start_waiting(one.id);
            end if;
        exception
            when others or assert_failure then
                if not {schema}.is_rows_own(sqlstate) then
                    raise;
                end if;
                said := left(sqlerrm, 1000);
        end;
        if said is not null then
            update {schema}.schedules as s
            set retry_at = time_now + make_interval(secs => retry_seconds), error_message = said
            where s.id = one.id;
            ticks := array[null::timestamptz];
            job_ids := array[null::uuid];
            words := '{{failed}}';
        end if;
        return query
        select one.id, t.tick, t.job_id, t.became from unnest(ticks, job_ids, words) as t(tick, job_id, became);
    end loop;
    if ready_at > time_now then
        perform set_config('pgnotifyq.clock', clock_before, true);
        perform pg_sleep(extract(epoch from ready_at - {schema}.clock()));
    end if;
end
$$;

-- fire_tick: fire one tick of a schedule, whose row the caller has locked.
--
-- Out:    the job, if one was enqueued; enqueued, waiting or skipped. If the tick was fired before:
--         known.
create or replace function {schema}.fire_tick(schedule_id uuid, tick timestamptz)
returns table (job_id uuid, became text)
language plpgsql volatile
set jit = off
as $$
#variable_conflict use_column
declare
    ticks_kept constant interval := '7 days';
    forgotten_max constant integer := 10;  -- a tick
    one {schema}.schedules;
begin
    select s.* into one from {schema}.schedules as s where s.id = fire_tick.schedule_id;
    insert into {schema}.schedule_ticks as t (schedule_id, tick, org_id)
    values (one.id, fire_tick.tick, one.org_id)
    on conflict on constraint schedule_ticks_pkey do nothing;
    if not found then
        became := 'known';
        return next;
        return;
    end if;
    became := 'enqueued';
    if one.overlap <> 'allow' and {schema}.has_open_run(one.id, fire_tick.tick) then
        if one.overlap = 'skip' then
            became := 'skipped';
        elsif one.overlap = 'queue' then
            became := 'waiting';
        else
            perform {schema}.cancel(o.job_id, 'its schedule starts the next run')
            from (
                select t.job_id
                from {schema}.schedule_ticks as t
                where t.schedule_id = one.id and t.state = 'open' and t.job_id is not null
                order by t.job_id
            ) as o;
        end if;
    end if;
    if became = 'enqueued' then
        job_id := {schema}.enqueue_tick(one.id, fire_tick.tick);
    end if;
    update {schema}.schedule_ticks as t
    set job_id = fire_tick.job_id,
        state = case when became = 'enqueued' and one.overlap <> 'allow' then 'open' else became end
    where t.schedule_id = one.id and t.tick = fire_tick.tick;

    -- No tick is fired twice, because next_at moves on. So rows are kept for a while only.
    delete from {schema}.schedule_ticks as t
    where t.schedule_id = one.id and t.tick in (
        select old.tick
        from {schema}.schedule_ticks as old
        where old.schedule_id = one.id and old.tick < fire_tick.tick - ticks_kept and old.state in ('skipped', 'enqueued')
        order by old.tick
        limit forgotten_max);
    return next;
end
$$;

-- enqueue_tick: enqueue the job of a tick. The jitter is the same for the same tick; what people
-- run by hand has none (`is_by_hand`).
create or replace function {schema}.enqueue_tick(schedule_id uuid, tick timestamptz, is_by_hand boolean default false)
returns uuid
language plpgsql volatile
as $$
#variable_conflict use_column
declare
    one {schema}.schedules;
    due_from timestamptz;
begin
    select s.* into one from {schema}.schedules as s where s.id = enqueue_tick.schedule_id;
    if one.jitter_seconds > 0 and not is_by_hand then
        due_from := enqueue_tick.tick + make_interval(secs => one.jitter_seconds
            * (hashtextextended(one.name || extract(epoch from enqueue_tick.tick), 0) & 1048575) / 1048576);
    end if;
    return {schema}.enqueue(
        job_type => one.job_type, payload => one.payload, org_id => one.org_id, queue_name => one.queue_name,
        priority => one.priority, max_attempts => one.max_attempts, scheduled_at => greatest(due_from, {schema}.clock()),
        headers => jsonb_build_object('pgnotifyq_schedule', jsonb_build_object(
            'name', one.name,
            'tick', to_char(enqueue_tick.tick at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"+00:00"'))));
end
$$;

-- has_open_run: whether a run of a schedule has not ended, or waits. One tick is left out.
--
-- Index:  schedule_ticks_unended, jobs_pkey. Runs that have ended leave the first.
create or replace function {schema}.has_open_run(schedule_id uuid, but_tick timestamptz) returns boolean
language plpgsql volatile
set jit = off
set enable_seqscan = off
as $$
#variable_conflict use_column
begin
    update {schema}.schedule_ticks as t
    set state = 'enqueued'
    where t.schedule_id = has_open_run.schedule_id and t.state = 'open' and t.tick is distinct from but_tick
      and not exists (
          select from {schema}.jobs as j
          where j.id = t.job_id and (j.status in ('pending', 'running') or j.is_held));
    return exists (
        select from {schema}.schedule_ticks as t
        where t.schedule_id = has_open_run.schedule_id and t.state in ('open', 'waiting') and t.tick is distinct from but_tick);
end
$$;

-- start_waiting: if the run of a schedule that others wait for has ended, enqueue the next one;
-- else have its end announced. announce_end tells workers of that end, and they call this again.
--
-- Out:    the job that was enqueued; null: none was.
-- Locks:  the schedule. This waits for the row, because the session that has it may have looked too
--         early. Then the job of its open run.
create or replace function {schema}.start_waiting(schedule_id uuid) returns uuid
language plpgsql volatile
set jit = off
set enable_seqscan = off
as $$
#variable_conflict use_column
declare
    one {schema}.schedules;
    next_tick timestamptz;
    open_job_id uuid;
    started uuid;
begin
    select s.* into one
    from {schema}.schedules as s
    where s.id = start_waiting.schedule_id and s.paused_at is null
    for no key update;
    if not found then
        return null;
    end if;
    loop
        perform {schema}.has_open_run(one.id, null);
        select t.tick into next_tick
        from {schema}.schedule_ticks as t
        where t.schedule_id = one.id and t.state = 'waiting'
        order by t.tick
        limit 1;
        exit when not found;
        select t.job_id into open_job_id
        from {schema}.schedule_ticks as t
        where t.schedule_id = one.id and t.state = 'open'
        order by t.job_id
        limit 1;
        if found then
            exit when {schema}.await_job(open_job_id);
            continue;  -- it has ended meanwhile
        end if;
        started := {schema}.enqueue_tick(one.id, next_tick);
        update {schema}.schedule_ticks as t
        set state = 'open', job_id = started
        where t.schedule_id = one.id and t.tick = next_tick;
    end loop;
    return started;
end
$$;

-- run_schedule: enqueue a schedule's job now, whatever its rule says, and whatever runs. Its tick
-- is now. A pause does not hold it back.
--
-- Out:    the job; null: there is no such schedule.
create or replace function {schema}.run_schedule(
    name text, org_id uuid default '00000000-0000-0000-0000-000000000000')
returns uuid
language plpgsql volatile
as $$
#variable_conflict use_column
declare
    one {schema}.schedules;
    own_tick timestamptz := {schema}.clock();
    started uuid;
begin
    select s.* into one
    from {schema}.schedules as s
    where s.name = run_schedule.name and s.org_id = run_schedule.org_id
    for no key update;
    if not found then
        return null;
    end if;
    while exists (select from {schema}.schedule_ticks as t where t.schedule_id = one.id and t.tick = own_tick) loop
        own_tick := own_tick + interval '1 microsecond';
    end loop;
    started := {schema}.enqueue_tick(one.id, own_tick, true);
    insert into {schema}.schedule_ticks (schedule_id, tick, org_id, job_id, state)
    values (one.id, own_tick, one.org_id, started, case when one.overlap = 'allow' then 'enqueued' else 'open' end);
    return started;
end
$$;

-- backfill_schedule: run a schedule for ticks of the past that no job was enqueued for. The runs
-- come one after the other, the oldest first, unless they may overlap.
--
-- In:     ticks, none of them in the future. The caller makes batches of them.
-- Out:    how many were taken. Those that have a job on record are left out; null: there is no such
--         schedule.
create or replace function {schema}.backfill_schedule(
    name text, ticks timestamptz[], org_id uuid default '00000000-0000-0000-0000-000000000000')
returns integer
language plpgsql volatile
as $$
#variable_conflict use_column
declare
    one {schema}.schedules;
    each timestamptz;
    taken integer := 0;
begin
    select s.* into one
    from {schema}.schedules as s
    where s.name = backfill_schedule.name and s.org_id = backfill_schedule.org_id
    for no key update;
    if not found then
        return null;
    end if;
    for each in
        select distinct t.tick from unnest(backfill_schedule.ticks) as t(tick)
        where t.tick <= {schema}.clock()
        order by t.tick
    loop
        insert into {schema}.schedule_ticks as t (schedule_id, tick, org_id, state)
        values (one.id, each, one.org_id, 'waiting')
        on conflict on constraint schedule_ticks_pkey do update set state = 'waiting' where t.state = 'skipped';
        continue when not found;
        taken := taken + 1;
        if one.overlap = 'allow' then
            update {schema}.schedule_ticks as t
            set job_id = {schema}.enqueue_tick(one.id, each), state = 'enqueued'
            where t.schedule_id = one.id and t.tick = each;
        end if;
    end loop;
    if one.overlap <> 'allow' then
        perform {schema}.start_waiting(one.id);
    end if;
    return taken;
end
$$;

-- has_waiting_run: whether runs of a schedule wait for a job's end. announce_end asks it, where
-- there are schedules.
--
-- Index:  schedule_ticks_open, schedule_ticks_unended.
create or replace function {schema}.has_waiting_run(job_id uuid) returns boolean
language sql stable
set jit = off
set enable_seqscan = off
as $$
    select exists (
        select
        from {schema}.schedule_ticks as t
        join {schema}.schedule_ticks as w on w.schedule_id = t.schedule_id and w.state = 'waiting'
        where t.job_id = has_waiting_run.job_id and t.state = 'open')
$$;
