-- top: a queue at a glance, for a screen that looks again and again: one document.
--
-- Out:    `queues`, each with what is due and scheduled (counted up to 2,000 together, `is_more`
--         tells that there are more), what runs, the age of the oldest due job, and whether it is
--         paused; `running`, the longest first, at most `rows_max`; `waiting`, the longest due
--         first, and `dead`, the latest first, the same; `counted`, jobs that were enqueued and
--         attempts that have ended since the server counts. Times are in seconds, by the
--         database's clock.
-- Index:  jobs_claimable, with a look for each queue and priority; jobs_held;
--         dead_letter_jobs_by_time. It reads some thousand entries at the most, whatever waits, and
--         no finished job.
-- Rights: the caller's. It reads the workers' queues, so producers and tenants may not ask.
create or replace function {schema}.top(rows_max integer default 50) returns jsonb
language sql volatile
set jit = off
set enable_seqscan = off
set enable_bitmapscan = off
as $$
    with recursive clock as materialized (
        select {schema}.clock() as now
    ), heads as (
        -- The first job of each queue and priority. Two looks a step: the next priority of the same
        -- queue, else the next queue.
        (select j.queue_name, j.priority, j.scheduled_at, 1 as place
         from {schema}.jobs as j
         where j.is_claimable
         order by j.queue_name, j.priority desc, j.scheduled_at, j.id
         limit 1)
        union all
        select n.queue_name, n.priority, n.scheduled_at, h.place + 1
        from heads as h
        cross join lateral (
            (select j.queue_name, j.priority, j.scheduled_at
             from {schema}.jobs as j
             where j.is_claimable and j.queue_name = h.queue_name and j.priority < h.priority
             order by j.queue_name, j.priority desc, j.scheduled_at, j.id
             limit 1)
            union all
            (select j.queue_name, j.priority, j.scheduled_at
             from {schema}.jobs as j
             where j.is_claimable and j.queue_name > h.queue_name
             order by j.queue_name, j.priority desc, j.scheduled_at, j.id
             limit 1)
            limit 1
        ) as n
        where h.place < 500
    ), held as materialized (
        select j.id, j.queue_name, j.job_type, {schema}.label(j.status, j.is_held, j.attempts, j.scheduled_at, c.now) as label,
            -{schema}.seconds_until(j.started_at, c.now) as seconds, j.attempts, j.progress, left(j.progress_message, 200) as message,
            w.host, w.pid
        from clock as c
        join {schema}.jobs as j on j.is_held
        left join {schema}.worker_heartbeats as w on w.worker_id = j.locked_by
    ), names as (
        select h.queue_name from heads as h
        union
        select h.queue_name from held as h
        union
        select q.name from {schema}.worker_heartbeats as w, unnest(w.queues) as q(name)
        union
        select p.name from {schema}.pauses as p where p.scope = 'queue'
    ), queues as (
        select n.queue_name, e.due, e.later, e.due + e.later >= 2000 as is_more,
            (select count(*) from held as h where h.queue_name = n.queue_name) as running,
            (select max(-{schema}.seconds_until(h.scheduled_at, c.now))
             from heads as h
             where h.queue_name = n.queue_name and h.scheduled_at <= c.now) as oldest_due_seconds,
            exists (select from {schema}.pauses as p
                    where p.scope = 'everything' or (p.scope = 'queue' and p.name = n.queue_name)) as is_paused
        from clock as c
        cross join names as n
        cross join lateral (
            select count(*) filter (where f.scheduled_at <= c.now) as due, count(*) filter (where f.scheduled_at > c.now) as later
            from (
                select j.scheduled_at
                from {schema}.jobs as j
                where j.is_claimable and j.queue_name = n.queue_name
                order by j.queue_name, j.priority desc, j.scheduled_at, j.id
                limit 2000
            ) as f
        ) as e
    ), waiting as (
        select j.id, j.queue_name, j.job_type, j.priority, j.attempts, -{schema}.seconds_until(j.scheduled_at, c.now) as seconds,
            left(j.error_message, 200) as error_message
        from clock as c
        cross join heads as h
        cross join lateral (
            select j.*
            from {schema}.jobs as j
            where j.is_claimable and j.queue_name = h.queue_name and j.priority = h.priority and j.scheduled_at <= c.now
            order by j.scheduled_at, j.id
            limit least(top.rows_max, 20)
        ) as j
    ), dead as (
        select d.id, d.queue_name, d.job_type, d.reason, d.attempts, -{schema}.seconds_until(d.died_at, c.now) as seconds,
            left(d.error_message, 200) as error_message
        from clock as c
        cross join lateral (
            select d.* from {schema}.dead_letter_jobs as d order by d.died_at desc limit top.rows_max
        ) as d
    )
    select jsonb_build_object(
        'queues', (select coalesce(jsonb_agg(to_jsonb(q) order by q.queue_name), '[]') from queues as q),
        'running', (
            select coalesce(jsonb_agg(to_jsonb(h) order by h.seconds desc, h.id), '[]')
            from (select * from held as h order by h.seconds desc, h.id limit top.rows_max) as h),
        'running_all', (select count(*) from held as h),
        'waiting', (
            select coalesce(jsonb_agg(to_jsonb(w) order by w.seconds desc, w.id), '[]')
            from (select * from waiting as w order by w.seconds desc, w.id limit top.rows_max) as w),
        'dead', (select coalesce(jsonb_agg(to_jsonb(d) order by d.seconds, d.id), '[]') from dead as d),
        'counted', jsonb_build_object(
            'enqueued', pg_stat_get_tuples_inserted('{schema}.jobs'::regclass),
            'ended', pg_stat_get_tuples_inserted('{schema}.job_executions'::regclass),
            'at', extract(epoch from clock_timestamp())::float8))
$$;
