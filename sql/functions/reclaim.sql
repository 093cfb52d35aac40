-- watch: look whether the sessions of the other workers are alive; forget sleepers that are not.
--
-- A worker's listener session holds an advisory lock named after it. A lock that can be had is a session that is gone.
-- The first look that finds it gone notes the time; a beat or a return of the worker clears it; a later look, `grace_seconds`
-- after, finds the worker dead.
-- Out: the number of other workers, the dead ones, whether any is suspected.
create or replace function {schema}.watch(by_worker uuid, grace_seconds double precision)
returns table (others integer, dead uuid[], suspected boolean)
language plpgsql volatile
as $$
#variable_conflict use_column
declare
    time_now timestamptz := {schema}.clock();
    other record;
    gone uuid[] := '{{}}';
begin
    others := 0;
    dead := '{{}}';
    suspected := false;
    for other in
        select w.worker_id, w.session_lost_at, w.has_session, w.last_beat_at, w.lease_seconds
        from {schema}.worker_heartbeats as w
        where w.worker_id <> by_worker
    loop
        if not other.has_session then
            -- Only its beats speak of it. The row is forgotten long after its leases have run out.
            if other.last_beat_at < time_now - make_interval(secs => 3 * other.lease_seconds) then
                dead := dead || other.worker_id;
            else
                others := others + 1;
            end if;
        elsif not pg_try_advisory_xact_lock_shared({schema}.session_key(other.worker_id)) then
            others := others + 1;
        elsif other.session_lost_at is null then
            gone := gone || other.worker_id;
        elsif other.session_lost_at <= time_now - make_interval(secs => grace_seconds) then
            dead := dead || other.worker_id;
        else
            suspected := true;
        end if;
    end loop;
    if cardinality(gone) > 0 then
        suspected := true;
        update {schema}.worker_heartbeats as w set session_lost_at = time_now
        where w.worker_id = any (gone) and w.session_lost_at is null;
    end if;
    return next;
end
$$;

-- reclaim: take back jobs whose lease has run out or whose worker is dead.
--
-- In:     jobs_max bounds the batch; `dead` as watch() told (their rows are checked again here).
-- Out:    one row a job: what it became (pending, dead, cancelled). When fewer than jobs_max were found, one more row whose
--         `job_id` is null and whose `next_seconds` says when the next lease runs out (null: none is held).
-- Locks:  the jobs, `skip locked`: each job is reclaimed once, whoever looks. `for update` reads the row again after
--         locking it, so a completion or a renewal that committed meanwhile stands.
-- Index:  jobs_held.
--
-- The attempt is charged. A job with none left goes to the dead letters, with the reason `lost`; a cancelled one is closed.
create or replace function {schema}.reclaim(by_worker uuid, jobs_max integer, dead uuid[] default '{{}}')
returns table (job_id uuid, job_type text, queue_name text, worker_id uuid, attempt integer, became text, next_seconds double precision)
language plpgsql volatile
set plan_cache_mode = force_generic_plan
set enable_seqscan = off
as $$
#variable_conflict use_column
declare
    time_now timestamptz := {schema}.clock();
    really_dead uuid[];
    lost record;
    taken integer := 0;
begin
    select coalesce(array_agg(w.worker_id), '{{}}') into really_dead
    from {schema}.worker_heartbeats as w
    where w.worker_id = any (dead) and (w.session_lost_at is not null or not w.has_session);

    for lost in
        select j.*
        from {schema}.jobs as j
        where j.is_held and (j.lease_expires_at < time_now or j.locked_by = any (really_dead))
        limit jobs_max
        for update skip locked
    loop
        taken := taken + 1;
        job_id := lost.id;
        job_type := lost.job_type;
        queue_name := lost.queue_name;
        worker_id := lost.locked_by;
        attempt := lost.attempts;
        insert into {schema}.job_executions (
            id, job_id, org_id, attempt, worker_id, outcome, started_at, ended_at, error_message)
        values (lost.current_execution_id, lost.id, lost.org_id, lost.attempts, lost.locked_by, 'lost', lost.started_at, time_now,
            case when lost.locked_by = any (really_dead) then 'the worker died' else 'the lease ran out' end);
        if lost.status = 'cancelled' then
            became := 'cancelled';
            update {schema}.jobs as j
            set locked_by = null, current_execution_id = null, lease_expires_at = null
            where j.id = lost.id and j.current_execution_id = lost.current_execution_id;
        elsif lost.attempts >= lost.max_attempts then
            became := 'dead';
            insert into {schema}.dead_letter_jobs (
                id, org_id, queue_name, job_type, payload, priority, scheduled_at, attempts, max_attempts, unique_key,
                created_at, reason, error_message, history, died_at)
            values (lost.id, lost.org_id, lost.queue_name, lost.job_type, lost.payload, lost.priority, lost.scheduled_at,
                lost.attempts, lost.max_attempts, lost.unique_key, lost.created_at, 'lost',
                'the last of ' || lost.max_attempts || ' attempts was lost with its worker', {schema}.history(lost.id), time_now);
            delete from {schema}.jobs as j
            where j.id = lost.id and j.current_execution_id = lost.current_execution_id;
        else
            became := 'pending';
            update {schema}.jobs as j
            set status = 'pending', locked_by = null, current_execution_id = null, lease_expires_at = null,
                error_message = 'attempt ' || lost.attempts || ' was lost with its worker'
            where j.id = lost.id and j.current_execution_id = lost.current_execution_id;
            perform {schema}.wake(lost.queue_name, lost.scheduled_at, 1);
        end if;
        if lost.awaited and became <> 'pending' then
            perform pg_notify({schema_text} || '_finished', lost.id::text);
        end if;
        return next;
    end loop;

    if taken < jobs_max then
        -- The rows of dead workers stay until none of their jobs is left.
        perform {schema}.unregister_worker(d.worker_id)
        from unnest(really_dead) as d(worker_id)
        where not exists (select from {schema}.jobs as j where j.is_held and j.locked_by = d.worker_id);

        job_id := null;
        job_type := null;
        queue_name := null;
        worker_id := null;
        attempt := null;
        became := null;
        select extract(epoch from min(j.lease_expires_at) - time_now) into next_seconds
        from {schema}.jobs as j
        where j.is_held;
        return next;
    end if;
end
$$;
