-- tell_followers: tell those who follow jobs what has happened to some. A function that changes a
-- job calls it if `pg_relation_size` says that a job has been followed. If nobody has followed one,
-- a statement pays for nothing else.
--
-- In:     event         enqueued, edited, started, progress, stopping, ended, logged
--         job_ids       the jobs. They are rows of the table still.
--         said          of each: the attempt, and then what belongs to the event: the fraction, or
--                       the outcome. Null: nothing
--         queue_before  of edited: the queue in which the job was. Its followers are told, too
-- Locks:  none.
-- Index:  jobs_pkey. The followers are read through: there are few (follow.sql).
--
-- A follower of one job is sent the job's key on `<schema>_finished`, and reads the row. A follower
-- of many jobs is sent lines on a channel of its own, with the time, the key and what is said, and
-- reads the rows for the rest. Some lines go in one message, so that a batch costs few messages.
--
-- A client may forget to say that it follows no more, or die. So a follower counts until a time,
-- and its client says again and again that it is there.

-- The earlier form is dropped. Otherwise a call without the last argument would fit both.
drop function if exists {schema}.tell_followers(text, uuid[], text[]);
create or replace function {schema}.tell_followers(
    event text, job_ids uuid[], said text[] default null, queue_before text default null)
returns void
language plpgsql volatile
set plan_cache_mode = force_generic_plan
set jit = off
set enable_seqscan = off
set enable_bitmapscan = off
as $$
declare
    lines_max constant integer := 64;  -- of a message, which has 8,000 bytes at the most
    time_now constant timestamptz := {schema}.clock();
begin
    -- A worker's role may have been granted its rights by hand, before there were followers. It
    -- goes on.
    if not has_table_privilege('{schema}.followers', 'select') then
        return;
    end if;
    perform set_config('pgnotifyq.tells', 'yes', true);
    perform from {schema}.followers as f where f.until > time_now limit 1;
    if not found then
        perform set_config('pgnotifyq.tells', '', true);
        return;
    end if;
    perform {schema}.notify({schema_text} || '_finished', f.job_id::text)
    from {schema}.followers as f
    join {schema}.jobs as j on j.id = f.job_id
    where f.until > time_now and f.job_id = any (job_ids) and (f.org_id is null or f.org_id = j.org_id);
    perform {schema}.notify({schema}.follower_channel(m.follower_id), string_agg(m.line, chr(10) order by m.place))
    from (
        select f.id as follower_id, t.place,
            (row_number() over (partition by f.id order by t.place) - 1) / lines_max as part,
            concat_ws(' ', event, round(extract(epoch from time_now), 3), t.job_id, t.detail) as line
        from unnest(job_ids, tell_followers.said) with ordinality as t(job_id, detail, place)
        join {schema}.jobs as j on j.id = any (job_ids) and j.id = t.job_id
        join {schema}.followers as f on f.job_id is null and f.until > time_now and event <> 'logged'
            and (f.queue_name is null or f.queue_name = j.queue_name or f.queue_name = tell_followers.queue_before)
            and (f.org_id is null or f.org_id = j.org_id)
    ) as m
    group by m.follower_id, m.part
    order by m.follower_id, m.part;
    perform set_config('pgnotifyq.tells', '', true);
end
$$;

-- tell_of_enqueued: tell of jobs that are new, and of those among them that have started already.
create or replace function {schema}.tell_of_enqueued(job_ids uuid[], started_ids uuid[]) returns void
language plpgsql volatile
as $$
begin
    perform {schema}.tell_followers('enqueued', job_ids);
    if cardinality(started_ids) > 0 then
        perform {schema}.tell_followers('started', started_ids, array_fill('1'::text, array[cardinality(started_ids)]));
    end if;
end
$$;

-- tell_of_lost: tell those who follow a queue how many more jobs were enqueued there than are told
-- one by one.
create or replace function {schema}.tell_of_lost(org_id uuid, queue_name text, jobs bigint) returns void
language plpgsql volatile
as $$
#variable_conflict use_column
begin
    perform set_config('pgnotifyq.tells', 'yes', true);
    perform {schema}.notify({schema}.follower_channel(f.id), 'lost ' || tell_of_lost.jobs)
    from {schema}.followers as f
    where f.job_id is null and f.until > {schema}.clock()
      and (f.queue_name is null or f.queue_name = tell_of_lost.queue_name)
      and (f.org_id is null or f.org_id = tell_of_lost.org_id);
    perform set_config('pgnotifyq.tells', '', true);
end
$$;

-- tell_of_ended: tell of attempts that have ended, before or after their jobs' rows are changed.
create or replace function {schema}.tell_of_ended(ended {schema}.ended_attempt[]) returns void
language plpgsql volatile
as $$
begin
    perform {schema}.tell_followers('ended', array_agg(e.job_id), array_agg(e.attempt || ' ' || e.outcome))
    from unnest(ended) as e;
end
$$;

-- follower_channel: the channel of a follower of many jobs.
create or replace function {schema}.follower_channel(follower_id uuid) returns text
language sql immutable parallel safe
as $$ select {schema_text} || '_f_' || replace(follower_id::text, '-', '') $$;
