-- reclaim: take back jobs whose lease has run out or whose worker is dead.
--
-- In:     jobs_max bounds the batch; `dead`: the workers that watch() has given up (their rows are
--         checked again here).
-- Out:    one row a job: what it became (pending, dead, cancelled; completed, if its worker meant
--         that and could not write it; refused, see below). When fewer than jobs_max were found,
--         one more row whose `job_id` is null and whose `next_seconds` says when the next lease
--         runs out (null: none is held).
-- Locks:  the dead workers' rows, `skip locked`: one reclaims a dead worker's jobs at a time. The
--         jobs, `skip locked`: of several reclaimers one takes a job. `for update` reads the row
--         again after locking it, so a completion or a renewal that committed meanwhile stands.
-- Index:  jobs_held.
--
-- Each job has a subtransaction. A job that cannot be taken back became `refused`: it is put aside
-- (job_troubles), and passed over until its next look. If a worker could not write a job's outcome,
-- the job is ended as that worker meant.
--
-- The attempt is charged. A job with no attempt left goes to the dead letters, with the reason
-- `lost`; a cancelled one is closed.
--
-- Which job killed the worker? A job that kills each process it runs in must be dead after its
-- attempts. The jobs that ran beside it must not be charged for that again and again. When a worker
-- dies, nobody can tell them apart; but an innocent job survives being run apart from the others.
-- The naive rule is to charge no job that had company. Then a poison pill that always has company
-- lives for ever. The next naive rule is to run apart each job that was lost once. Then the jobs of
-- every killed worker wait for each other. So, of the jobs that a dead worker held:
--
-- 1. A suspect is charged, and with it the attempt that was given back when it became a suspect.
-- 2. A job that ran beside a suspect is given its attempt back.
-- 3. A job that died with a worker before, and was not alone this time, becomes a suspect: it is
--    given its attempt back and parked.
-- 4. All others, those lost for the first time or alone, are charged.
--
-- The suspects of one worker are let out one at a time: the next when the one before has ended or
-- waits for a retry, and after an hour in any case. Each death of a worker charges a job or makes
-- suspects, and a job becomes a suspect only once: so it ends. A poison pill is dead after as many
-- kills as it has attempts (one more when it has two and had company both times). A job that ran
-- beside it is charged for at most one of these kills. If a lease merely ran out, the attempt is
-- charged as ever: that worker may live.
create or replace function {schema}.reclaim(worker_id uuid, jobs_max integer, dead uuid[] default '{{}}')
returns table (
    job_id uuid, job_type text, queue_name text, locked_by uuid, attempt integer, became text,
    next_seconds double precision)
language plpgsql volatile
set plan_cache_mode = force_generic_plan
set jit = off
set enable_seqscan = off
set lock_timeout = '100ms'  -- of what triggers of the user's want; rows are not waited for
as $$
#variable_conflict use_column
declare
    parked_for constant interval := '1 hour';
    trials_every_seconds constant double precision := 1;
    time_now timestamptz := {schema}.clock();
    really_dead uuid[];
    claimed_before timestamptz;  -- a later claim is a sign of life, for the job that it brought
    dead_worker uuid;
    in_company uuid[];
    beside_suspects uuid[];
    lost record;
    blame text;
    is_written boolean;
    charged integer;
    taken integer := 0;
    has_troubles boolean := exists (select from {schema}.job_troubles);
    wish {schema}.job_troubles;
    ended {schema}.ended_attempt[];
    state text;
    said text;
begin
    -- The rows of the dead workers are locked until this commits: a worker that comes back
    -- meanwhile learns that it was given up (hold_session.sql, beat.sql).
    select coalesce(array_agg(d.worker_id), '{{}}'), time_now - make_interval(secs => coalesce(max(d.grace_seconds), 0))
    into really_dead, claimed_before
    from (
        select w.worker_id, w.grace_seconds
        from {schema}.worker_heartbeats as w
        where w.worker_id = any (dead) and {schema}.has_died(w.worker_id)
        for no key update skip locked
    ) as d;
    if cardinality(really_dead) > 0 then
        select array_agg(h.worker) filter (where h.jobs > 1), array_agg(h.worker) filter (where h.suspects > 0)
        into in_company, beside_suspects
        from (
            select j.locked_by as worker, count(*) as jobs, count(j.suspicion) as suspects
            from {schema}.jobs as j
            where j.is_held and j.locked_by = any (really_dead)
            group by j.locked_by
        ) as h;
    end if;

    for lost in
        select j.*
        from {schema}.jobs as j
        where j.is_held and (j.lease_expires_at < time_now or (j.locked_by = any (really_dead) and j.started_at <= claimed_before))
          and not (has_troubles and {schema}.is_in_trouble(j.org_id, j.id, time_now))
        order by (j.suspicion is not null) desc, j.started_at  -- so that the second batch of a worker is not blamed for the first
        limit jobs_max
        for update skip locked
    loop
        taken := taken + 1;
        job_id := lost.id;
        job_type := lost.job_type;
        queue_name := lost.queue_name;
        locked_by := lost.locked_by;
        attempt := lost.attempts;
        blame := case
            when not lost.locked_by = any (really_dead) then 'lease'
            when lost.status = 'cancelled' then 'cancelled'
            when lost.suspicion is not null then 'suspect'
            when lost.locked_by = any (beside_suspects) then 'beside a suspect'
            when lost.locked_by = any (in_company) and exists (
                select from {schema}.job_executions as e
                where e.job_id = lost.id and e.outcome = 'lost' and e.error_message = 'the worker died') then 'again'
            else 'worker' end;
        charged := case
            when blame in ('again', 'beside a suspect') then greatest(lost.attempts - 1, 0)
            when blame = 'suspect' and lost.suspicion <> 'guilty' then least(lost.attempts + 1, lost.max_attempts)
            else lost.attempts end;
        begin
            set constraints all deferred;
            wish := null;
            if has_troubles then
                select t.* into wish
                from {schema}.job_troubles as t
                where t.job_id = lost.id and t.execution_id = lost.current_execution_id;
            end if;
            if wish.execution_id is not null then
                said := {schema}.settle_one(
                    wish.worker_id, lost.id, wish.execution_id, wish.verb, wish.outcome, wish.delay_seconds,
                    wish.wished_error, wish.wished_result, wish.reason);
                became := coalesce(said, case wish.verb
                    when 'complete' then 'completed' when 'cancel' then 'cancelled' when 'bury' then 'dead' else 'pending' end);
                is_written := not exists (
                    select from {schema}.jobs as j where j.id = lost.id and j.current_execution_id = wish.execution_id);
            else
                ended := array[row(
                    lost.id, lost.current_execution_id, lost.org_id, lost.attempts,
                    coalesce(lost.started_at, lost.created_at), 'lost', case blame
                        when 'lease' then 'the lease ran out'
                        when 'cancelled' then 'the worker died, and the job was cancelled'
                        when 'again' then 'the worker died again; not charged, to be run apart from what ran beside it'
                        when 'beside a suspect' then 'the worker died beside a suspect; not charged'
                        else 'the worker died' end)::{schema}.ended_attempt];
                -- The attempt is there already if a row was copied by hand under an execution that
                -- has ended.
                if not exists (
                    select from {schema}.job_executions as e where e.job_id = lost.id and e.id = lost.current_execution_id)
                then
                    perform {schema}.note_attempts(lost.locked_by, ended, time_now);
                end if;
                if lost.status = 'cancelled' then
                    became := 'cancelled';
                    update {schema}.jobs as j
                    set locked_by = null, current_execution_id = null, lease_expires_at = null
                    where j.id = lost.id and j.current_execution_id = lost.current_execution_id;
                    is_written := found;
                    if lost.key_passed_on then
                        perform {schema}.start_successors(array[lost.id]);
                    end if;
                elsif charged >= lost.max_attempts then
                    became := 'dead';
                    perform {schema}.move_to_letters(
                        ended, array['lost'], time_now, array[charged],
                        array['the last of ' || lost.max_attempts || ' attempts was lost with its worker']);
                    is_written := true;
                else
                    became := 'pending';
                    update {schema}.jobs as j
                    set status = 'pending', locked_by = null, current_execution_id = null, lease_expires_at = null,
                        attempts = charged,
                        suspicion = case blame when 'again' then 'parked' when 'suspect' then 'guilty' else j.suspicion end,
                        suspected_with = case blame when 'again' then lost.locked_by else j.suspected_with end,
                        scheduled_at = case blame when 'again' then time_now + parked_for else j.scheduled_at end,
                        error_message = 'attempt ' || lost.attempts || ' was lost with its worker'
                    where j.id = lost.id and j.current_execution_id = lost.current_execution_id;
                    is_written := found;
                    if blame <> 'again' then
                        perform {schema}.wake(lost.queue_name, lost.scheduled_at, 1, null, lost.job_type);
                    end if;
                end if;
                if became = 'cancelled' and pg_relation_size('{schema}.hooks') > 0 then
                    perform {schema}.fire_hooks(array[lost.id]);
                end if;
                if lost.awaited and became in ('cancelled', 'pending') then
                    perform {schema}.announce_end(lost.id);
                end if;
            end if;
            if not is_written then
                perform {schema}.refuse_unwritten();
            end if;
            set constraints all immediate;
            if has_troubles then
                delete from {schema}.job_troubles as t where t.job_id = lost.id;
            end if;
        exception
            when others or assert_failure or query_canceled then
                get stacked diagnostics state = returned_sqlstate, said = message_text;
                -- If a single job was asked for, and a trigger of the user's stands still, the
                -- statement was cancelled because of that job.
                if not ({schema}.is_rows_own(state) or (state = '57014' and jobs_max = 1)) then
                    raise;
                end if;
                became := 'refused';
                has_troubles := true;
                perform {schema}.note_trouble(lost.org_id, lost.id, coalesce(wish.verb, 'reclaim'), state, said);
        end;
        return next;
    end loop;

    if taken < jobs_max then
        -- The rows of dead workers stay until none of their jobs is left, but for those that were
        -- put aside.
        for dead_worker in
            select d.worker_id
            from unnest(really_dead) as d(worker_id)
            where not exists (
                select from {schema}.jobs as j
                where j.is_held and j.locked_by = d.worker_id
                  and not exists (select from {schema}.job_troubles as t where t.org_id = j.org_id and t.job_id = j.id))
        loop
            begin
                perform {schema}.unregister_worker(dead_worker);
            exception
                when others or assert_failure then
                    get stacked diagnostics state = returned_sqlstate;
                    if not {schema}.is_rows_own(state) then
                        raise;
                    end if;
            end;
        end loop;

        perform {schema}.try_suspects();
        if has_troubles then
            perform {schema}.forget_troubles();
        end if;

        job_id := null;
        job_type := null;
        queue_name := null;
        locked_by := null;
        attempt := null;
        became := null;
        select {schema}.seconds_until(min(j.lease_expires_at), time_now) into next_seconds
        from {schema}.jobs as j
        where j.is_held;
        if has_troubles then
            -- For a job that was put aside, the time of its next look counts.
            select {schema}.seconds_until(min(greatest(j.lease_expires_at, t.look_at)), time_now) into next_seconds
            from {schema}.jobs as j
            left join {schema}.job_troubles as t on t.org_id = j.org_id and t.job_id = j.id
            where j.is_held;
        end if;
        if exists (
            select from {schema}.jobs as j where j.suspected_with is not null and j.suspicion = 'parked' and j.status = 'pending')
        then
            next_seconds := least(next_seconds, trials_every_seconds);
        end if;
        return next;
    end if;
end
$$;

-- try_suspects: for each dead worker, let one of its suspects out if none of them is out.
--
-- Locks:  the jobs, `skip locked`; if two sessions look at once, one finds nothing to do.
-- Index:  jobs_suspects.
create or replace function {schema}.try_suspects() returns void
language plpgsql volatile
set plan_cache_mode = force_generic_plan
set jit = off
set enable_seqscan = off
as $$
declare
    time_now timestamptz := {schema}.clock();
    let_out record;
    state text;
    said text;
begin
    for let_out in
        select distinct on (p.suspected_with) p.id, p.org_id
        from {schema}.jobs as p
        where p.suspected_with is not null and p.suspicion = 'parked' and p.status = 'pending'
          and not {schema}.is_in_trouble(p.org_id, p.id, time_now)
          and not exists (
              select from {schema}.jobs as o
              where o.suspected_with = p.suspected_with
                and (o.is_held or (o.is_claimable and o.scheduled_at <= time_now)))
        order by p.suspected_with, p.id
    loop
        begin
            set constraints all deferred;
            perform from {schema}.jobs as j
            where j.id = let_out.id and j.suspicion = 'parked' and j.status = 'pending'
            for no key update skip locked;
            if found then
                update {schema}.jobs as j set suspicion = 'on_trial', scheduled_at = time_now where j.id = let_out.id;
                if not found then
                    perform {schema}.refuse_unwritten();
                end if;
            end if;
            set constraints all immediate;
        exception
            when others or assert_failure then
                get stacked diagnostics state = returned_sqlstate, said = message_text;
                if not {schema}.is_rows_own(state) then
                    raise;
                end if;
                perform {schema}.note_trouble(let_out.org_id, let_out.id, 'reclaim', state, said);
        end;
    end loop;
end
$$;
