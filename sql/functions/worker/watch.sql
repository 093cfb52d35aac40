-- watch: look whether the other workers are alive, and give up those that are not. The protocol: pgnotifyq/runtime/trust.py.
--
-- In:     grace_seconds    of a worker of an older release, which has none in its row
--         session_seconds  how long whoever looks has had its session; null: ask the server. Nobody judges another in the first grace
--                          of its own session: after a restart of the server everybody has lost everybody.
-- Out:    the number of other workers; those that are given up; whether any is suspected.
-- Locks:  rows of worker_heartbeats, `skip locked`: a row that somebody holds is of a worker that gives a sign of life, or is judged.
--         Rows of sleepers, `skip locked` (forget_sleepers, sleep.sql): those whose session is gone hear nothing.
--
-- The first look that finds a worker's session gone notes the time; a beat or a return of the worker clears it; a later look, the
-- worker's grace after, gives it up. That is written into its row, and committed, before anything is taken from it: a sign of life and
-- the judgement meet in the row, so that one of them comes first and the other learns of it.
-- The earlier form, without `session_seconds`: beside this one, a call that leaves that out would fit both.
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
        -- `for no key update` reads the row again once it is locked: a sign of life that has committed meanwhile stands.
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

-- session_lives: whether a worker's session speaks for it: its lock is held, and by the very backend that is in its row.
--
-- The lock alone is not enough: whoever may connect can take it, or stand in line for it. Nor is the backend: a pooler in session mode
-- keeps it, and gives the lock back, when its client goes. A lock that can be had is held by nobody; it is had until the transaction
-- ends, and shared, so that two may look at once.
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

-- has_died: whether a worker that was judged is still dead when its jobs are about to be taken.
--
-- Of one without a session only its beats speak; it is given up long after its leases have run out. One of an older release is in
-- nobody's book but by the time its session was lost.
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
