-- kept_seconds: for how long a finished job is kept, at the least: the shortest time that the table
-- `retention` says, or seven days, the workers' default, if that is shorter. A role that may not
-- read the table is told the seven days. What is unfinished is never pruned.
create or replace function {schema}.kept_seconds() returns double precision
language plpgsql stable
as $$
declare
    shortest float8;
begin
    if has_table_privilege('{schema}.retention', 'select') then
        select min(r.keep_seconds) into shortest from {schema}.retention as r where r.ending <> 'dead';
    end if;
    return least(604800, shortest);
end
$$;

-- explain: why a job is where it is: what it waits for, who holds it, who could run it, how it
-- ended, or why it is not there. One row, always.
--
-- Out:    `label` is its status, a derived one, `dead`, or `unknown`: it is not there. `answers`
--         are the words of docs/explain.md, as many as hold at once. `facts` are what the words
--         are decided by; times are in seconds, by the database's clock.
-- Index:  jobs_pkey; dead_letter_jobs_pkey; jobs_claimable for the jobs before it, of which at most
--         1,000 are counted, among 10,000 entries of the index at the most.
-- Rights: the caller's. It reads the workers, so producers and tenants may not ask.
--
-- Which answers hold is decided here, and only here. What each says to people is a row of the table
-- in pgnotifyq/ledger/explaining.py. A new answer needs a line of the array below, a line of the
-- facts for what decides it, and a row of that table.
create or replace function {schema}.explain(job_id uuid)
returns table (label text, answers text[], facts jsonb)
language sql volatile
set jit = off
set enable_seqscan = off
set enable_bitmapscan = off
as $$
    with asked as materialized (
        select explain.job_id as id, {schema}.clock() as now
    ), found as materialized (
        select j.*, a.now, {schema}.label(j.status, j.is_held, j.attempts, j.scheduled_at, a.now) as label
        from asked as a
        join {schema}.jobs as j on j.id = a.id
    ), letter as materialized (
        select d.*, a.now
        from asked as a
        join {schema}.dead_letter_jobs as d on d.id = a.id
        where not exists (select from found as f)
    ), live as materialized (
        -- The live workers that take the job's queue, and whether they take its type.
        select w.worker_id, w.slots, w.version,
            (exists (select from {schema}.handlers as h where h.worker_id = w.worker_id and h.job_type = f.job_type)
             or not exists (select from {schema}.handlers as h where h.worker_id = w.worker_id)) as takes_type,
            (select count(*) from {schema}.jobs as j where j.is_held and j.locked_by = w.worker_id) as running
        from found as f
        join {schema}.worker_heartbeats as w
          on w.state = 'running' and f.queue_name = any (w.queues) and {schema}.is_alive(w.worker_id)
    ), served as materialized (
        select count(*) filter (where l.takes_type) as workers,
            count(*) filter (where not l.takes_type) as others,
            coalesce(sum(greatest(l.slots - l.running, 0)) filter (where l.takes_type), 0)::bigint as slots_free,
            array(select distinct v.version from live as v where not v.takes_type order by 1) as versions
        from live as l
    ), paused as materialized (
        select p.*
        from found as f
        join {schema}.pauses as p
          on f.status = 'pending'
         and (p.scope = 'everything' or (p.scope = 'queue' and p.name = f.queue_name) or (p.scope = 'job_type' and p.name = f.job_type))
    ), before as materialized (
        select case when f.status = 'pending' then (
            select count(*)
            from (
                select from (
                    (select j.scheduled_at
                     from {schema}.jobs as j
                     where j.is_claimable and j.queue_name = f.queue_name and j.priority > f.priority
                     order by j.priority desc, j.scheduled_at, j.id
                     limit 10000)
                    union all
                    (select j.scheduled_at
                     from {schema}.jobs as j
                     where j.is_claimable and j.queue_name = f.queue_name and j.priority = f.priority
                       and (j.scheduled_at, j.id) < (f.scheduled_at, f.id)
                     order by j.scheduled_at, j.id
                     limit 1000)
                ) as e
                where e.scheduled_at <= f.now
                limit 1000
            ) as c) end as jobs
        from found as f
    ), job as (
        select f.id, f.label, f.status = 'pending' as waits, f.scheduled_at <= f.now as is_due,
            coalesce(f.suspicion = 'parked', false) as is_parked, f.is_held,
            case when f.is_held then coalesce({schema}.is_alive(f.locked_by), false) and f.lease_expires_at > f.now end as is_kept,
            t.look_at > f.now as is_aside, t.verb, f.waits_for,
            jsonb_build_object(
                'queue_name', f.queue_name, 'job_type', f.job_type, 'attempts', f.attempts, 'max_attempts', f.max_attempts,
                'error_message', left(f.error_message, 10000),
                'due_in_seconds', case when f.status = 'pending' then {schema}.seconds_until(f.scheduled_at, f.now) end,
                'jobs_before', b.jobs,
                'workers', s.workers,
                'workers_without_handler', case when s.workers = 0 then s.others else 0 end,
                'versions_without_handler', case when s.workers = 0 then s.versions else '{{}}'::text[] end,
                'slots_free', s.slots_free,
                'is_parked', coalesce(f.suspicion = 'parked', false),
                'lease_seconds_left', {schema}.seconds_until(f.lease_expires_at, f.now),
                'held_for_seconds', case when f.is_held then -{schema}.seconds_until(f.started_at, f.now) end,
                'held_on_host', h.host, 'held_by_pid', h.pid,
                'is_holder_alive', case when f.is_held then coalesce({schema}.is_alive(f.locked_by), false) end,
                'ended_for_seconds', -{schema}.seconds_until(f.completed_at, f.now)
            ) || jsonb_build_object(
                'trouble_with', t.verb, 'trouble', t.error_message, 'trouble_tries', t.tries,
                'trouble_look_in_seconds', {schema}.seconds_until(t.look_at, f.now),
                'waits_for', f.waits_for,
                'schedule', f.headers->'pgnotifyq_schedule'->>'name',
                'scheduled_for', f.headers->'pgnotifyq_schedule'->>'tick',
                'due_after_wait_in_seconds', case when f.waits_for is not null then {schema}.seconds_until(f.due_after_wait, f.now) end,
                'pauses', (
                    select coalesce(jsonb_agg(jsonb_build_object('scope', p.scope, 'name', p.name, 'who', p.who, 'why', p.why,
                        'for_seconds', -{schema}.seconds_until(p.paused_at, f.now)) order by p.scope), '[]')
                    from paused as p)
            ) as facts,
            exists (select from paused as p) as is_paused, s.workers, s.others, s.slots_free, b.jobs as jobs_before,
            f.attempts > 0 and f.error_message is not null as has_failed
        from found as f
        cross join served as s
        cross join before as b
        left join {schema}.worker_heartbeats as h on h.worker_id = f.locked_by
        left join {schema}.job_troubles as t on t.org_id = f.org_id and t.job_id = f.id
    ), answered as (
        select j.*, j.waits and j.is_due and not j.is_parked and not coalesce(j.is_aside, false) and not j.is_paused
            and j.workers > 0 as is_in_line
        from job as j
    )
    select a.label, array_remove(array[
            case when not a.waits and not a.is_held then a.label end,  -- completed, cancelled
            case when a.label in ('running', 'stopping') then a.label end,
            case when a.is_held and not a.is_kept then 'worker_gone' end,
            case when a.is_parked and a.waits then 'parked' end,
            case when a.waits and a.has_failed and not a.is_parked then 'retry' end,
            case when a.waits and a.waits_for is not null then 'after_holder' end,
            case when a.waits and not a.is_parked and a.waits_for is null then case when a.is_due then 'due' else 'not_due' end end,
            case when a.is_paused then 'paused' end,
            case when a.verb is not null then 'put_aside' end,
            -- A job that nobody holds, or whose holder is gone, wants a worker.
            case when (a.waits or not a.is_kept) and a.workers = 0 then case when a.others > 0 then 'no_handler' else 'no_worker' end end,
            case when a.is_in_line and a.slots_free = 0 then 'at_capacity' end,
            case when a.is_in_line and a.jobs_before > 0 then 'behind' end,
            case when a.is_in_line and a.slots_free > 0 and a.jobs_before = 0 then 'next' end,
            case when a.facts->>'schedule' is not null then 'of_schedule' end
        ], null), a.facts
    from answered as a
    union all
    select 'dead', array['dead'], jsonb_build_object(
        'queue_name', d.queue_name, 'job_type', d.job_type, 'attempts', d.attempts, 'max_attempts', d.max_attempts,
        'error_message', left(d.error_message, 10000), 'reason', d.reason,
        'ended_for_seconds', -{schema}.seconds_until(d.died_at, d.now))
    from letter as d
    union all
    -- An id of version 7 carries the time at which it was made.
    select 'unknown', array[case
            when i.age_seconds is null then 'unknown'
            when i.age_seconds < i.kept_seconds then 'never_there'
            else 'pruned' end],
        jsonb_build_object('id_age_seconds', i.age_seconds, 'kept_seconds', i.kept_seconds)
    from (
        select case when substr(a.id::text, 15, 1) = '7' then
                extract(epoch from a.now)::float8 - ('x' || left(replace(a.id::text, '-', ''), 12))::bit(48)::bigint / 1000.0::float8 end
                as age_seconds,
            {schema}.kept_seconds() as kept_seconds
        from asked as a
        where not exists (select from found as f) and not exists (select from letter as d)
    ) as i
$$;
