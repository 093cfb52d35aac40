-- watch: look whether the other workers are alive, and give up those that are not. The protocol:
-- pgnotifyq/runtime/trust.py.
--
-- In:     grace_seconds    the grace of a worker of an older release, which has none in its row
--         session_seconds  how long the watcher has had its session; null: ask the server. In the
--                          first grace of its own session, a watcher notes and judges nobody. After
--                          a restart of the server, all workers have lost their sessions.
-- Out:    the number of other workers; those that are given up; whether any is suspected.
-- Locks:  rows of worker_heartbeats, `skip locked`. If a row is locked, its worker is giving a sign
--         of life, or another watcher is judging it. Rows of sleepers, `skip locked`
--         (forget_sleepers, sleep.sql): a sleeper whose session is gone hears nothing.
--
-- The first look that finds a worker's session gone notes the time. A beat or a return of the
-- worker clears it. A look that comes the worker's grace later gives the worker up. That is written
-- into the worker's row, and committed, before anything is taken from the worker. A sign of life
-- and the judgement meet in that row: one of them comes first, and the other learns of it.
--
-- The earlier form has no `session_seconds`, and is dropped. Otherwise a call without it would fit
-- both.
drop function if exists {schema}.watch(uuid, double precision);
create or replace function {schema}.watch(
    worker_id uuid, grace_seconds double precision, session_seconds double precision default null)
returns table (others integer, dead uuid[], suspected boolean)
language plpgsql volatile
as $$
#variable_conflict use_column
declare
    time_now timestamptz := {schema}.clock();
    other record;
    lost uuid[] := '{{}}';
    silent uuid[] := '{{}}';
    given_up uuid[];
begin
    others := 0;
    dead := '{{}}';
    suspected := false;
    session_seconds := coalesce(session_seconds, (
        select extract(epoch from clock_timestamp() - a.backend_start) from pg_stat_get_activity(pg_backend_pid()) as a));
    for other in
        select w.*, coalesce(w.grace_seconds, watch.grace_seconds) as grace, {schema}.has_died(w.worker_id) as has_died,
            {schema}.session_lives(w.worker_id) as lives
        from {schema}.worker_heartbeats as w
        where w.worker_id <> watch.worker_id
    loop
        if other.lives or (not other.has_session and not other.has_died) then
            others := others + 1;
        elsif not other.has_session or other.dead_since is not null then
            dead := dead || other.worker_id;
        elsif session_seconds < other.grace then
            suspected := true;
        elsif other.session_lost_at is null then
            lost := lost || other.worker_id;
        elsif other.session_lost_at > time_now - make_interval(secs => other.grace) then
            suspected := true;
        elsif other.grace_seconds is null then
            dead := dead || other.worker_id;
        else
            silent := silent || other.worker_id;
        end if;
    end loop;
    if cardinality(lost) > 0 then
        suspected := true;
        with locked as materialized (
            select w.worker_id
            from {schema}.worker_heartbeats as w
            where w.worker_id = any (lost) and w.session_lost_at is null
            for no key update skip locked
        )
        update {schema}.worker_heartbeats as w
        set session_lost_at = time_now
        from locked
        where w.worker_id = locked.worker_id;
    end if;
    if cardinality(silent) > 0 then
        -- `for no key update` reads the row again after it has locked it. So a sign of life that
        -- has committed meanwhile stands.
        with locked as materialized (
            select w.worker_id
            from {schema}.worker_heartbeats as w
            where w.worker_id = any (silent) and w.dead_since is null
              and w.session_lost_at <= time_now - make_interval(secs => w.grace_seconds)
            for no key update skip locked
        ), marked as (
            update {schema}.worker_heartbeats as w
            set dead_since = time_now
            from locked
            where w.worker_id = locked.worker_id
            returning w.worker_id
        )
        select array_agg(m.worker_id) into given_up from marked as m;
        dead := dead || coalesce(given_up, '{{}}');
        suspected := suspected or cardinality(silent) > coalesce(cardinality(given_up), 0);
    end if;
    perform {schema}.forget_sleepers(watch.worker_id);
    return next;
end
$$;

-- session_lives: whether a session speaks for a worker: the worker's lock is held, and the backend
-- in the worker's row is there.
--
-- The lock alone is not enough: any role that may connect can take it, or stand in line for it. The
-- backend alone is not enough: if a client goes, a pooler in session mode keeps the backend and
-- gives back the lock. If the lock can be had, nobody holds it. This function has it until its
-- transaction ends. It takes the lock shared, so that two watchers may look at once.
create or replace function {schema}.session_lives(worker_id uuid) returns boolean
language sql volatile
as $$
    select coalesce(bool_or(
        w.has_session
        and (w.session_pid is null or {schema}.backend_lives(w.session_pid, w.session_started_at, w.session_role::bigint))
        and not pg_try_advisory_xact_lock_shared(coalesce(w.session_lock, {schema}.session_key(w.worker_id)))), false)
    from {schema}.worker_heartbeats as w
    where w.worker_id = session_lives.worker_id
$$;

-- has_died: whether a worker that was given up is still dead, now that its jobs are to be taken.
--
-- For a worker without a session, only its beats count. It is given up long after its leases have
-- run out. For a worker of an older release, only the time counts at which its session was lost.
create or replace function {schema}.has_died(worker_id uuid) returns boolean
language sql volatile
as $$
    select coalesce(bool_or(case
        when not w.has_session then w.last_beat_at < {schema}.clock() - make_interval(secs => 3 * w.lease_seconds)
        when w.grace_seconds is null then w.session_lost_at is not null
        else w.dead_since is not null end), false)
    from {schema}.worker_heartbeats as w
    where w.worker_id = has_died.worker_id
$$;
