-- claim_apart: claim when claim has failed over some row: one row at a time, each in a
-- subtransaction. What cannot be taken is put aside.
--
-- A trigger, a foreign key or a check of the user's on the table of jobs can refuse the update of
-- one row. Then each batch with that row in it fails, and so does every batch of every worker.
--
-- In:     as claim. At most a hundred rows are tried.
-- Out:    the jobs as claim_named gives them; and one row for each job that was put aside: its id,
--         no execution, and in place of its payload what the database said. The next claim passes
--         over those.
-- Errors: the server's own (a deadlock, a lock, no memory, no disk) are raised: they say nothing of
--         the row.
-- Locks:  `pauses_lock`, shared (admit.sql). The rows, one after the other, for 20 ms at the most
--         (claim_named).
create or replace function {schema}.claim_apart(
    worker_id uuid, queue_names text[], jobs_max integer, lease_seconds double precision, job_types text[] default null,
    maxima integer[] default null, payload_bytes_max bigint default null)
returns setof {schema}.claimed
language plpgsql volatile
set plan_cache_mode = force_generic_plan
set jit = off
set enable_seqscan = off
set enable_bitmapscan = off
as $$
#variable_conflict use_column
declare
    rows_max constant integer := 100;
    time_now timestamptz := {schema}.clock();
    queue text;
    level integer;
    due record;
    one {schema}.claimed;
    -- Such a database checks a text only when it is sent. One bad text would fail all rows of the
    -- answer.
    holds_any_bytes constant boolean := getdatabaseencoding() = 'SQL_ASCII';
    tried integer := 0;
    said text;
    state text;
    limit_now bigint;
begin
    -- A constraint that is checked at the commit would fail all rows.
    set constraints all immediate;
    perform pg_try_advisory_xact_lock_shared({schema}.pauses_lock());
    select a.queue_names, a.job_types, a.maxima into queue_names, job_types, maxima
    from {schema}.admit(queue_names, job_types, maxima) as a;
    jobs_max := least(coalesce(jobs_max, 0), rows_max);
    <<queues>>
    foreach queue in array coalesce(queue_names, '{{}}') loop
        level := 32768;
        loop
            select n.priority into level
            from {schema}.next_by_type(queue, level, coalesce(job_types, {schema}.types_of(queue)), true, time_now) as n;
            exit when not found;
            for due in
                select c.id, c.org_id
                from unnest(coalesce(job_types, {schema}.types_of(queue))) as t(name)
                cross join lateral (
                    select j.id, j.org_id, j.scheduled_at
                    from {schema}.jobs as j
                    where j.is_claimable and j.queue_name || ' ' || j.job_type = queue || ' ' || t.name
                      and j.priority = level::smallint
                      and {schema}.may_start(j, null, true, time_now)  -- the range has chosen the type
                    order by j.queue_name || ' ' || j.job_type, j.priority desc, j.scheduled_at, j.id
                    limit jobs_max
                ) as c
                order by c.scheduled_at, c.id
                limit jobs_max
            loop
                exit queues when tried >= jobs_max;
                tried := tried + 1;
                limit_now := payload_bytes_max;
                loop
                    begin
                        for one in
                            select c.*
                            from {schema}.claim_named(
                                claim_apart.worker_id, queue_names, due.id, lease_seconds, job_types, maxima, limit_now) as c
                            where c.id is not null
                        loop
                            if holds_any_bytes then
                                perform convert_from(textsend(concat(one.payload, one.unique_key, one.saved, one.headers)), 'UTF8');
                            end if;
                            return next one;
                        end loop;
                        exit;
                    exception
                        when lock_not_available then
                            exit;  -- another transaction holds the row
                        when others or assert_failure or query_canceled then
                            get stacked diagnostics state = returned_sqlstate, said = message_text;
                            -- If a single job was asked for, and a trigger of the user's stands
                            -- still, the statement was cancelled because of that job.
                            if state ~ '^(08|25|26|40|53|55|57|58|XX)' and not (state = '57014' and jobs_max = 1) then
                                raise;
                            end if;
                    end;
                    -- PostgreSQL cannot make this text, or cannot send it. The job is taken without
                    -- it, and its worker buries the job.
                    if state ~ '^(54|22021)' and limit_now is distinct from -1 then
                        limit_now := -1;
                        continue;
                    end if;
                    if holds_any_bytes then
                        said := encode(textsend(said), 'escape');
                    end if;
                    perform {schema}.note_trouble(due.org_id, due.id, 'claim', state, said);
                    one := null;
                    one.id := due.id;
                    one.org_id := due.org_id;
                    one.payload := said;
                    return next one;
                    exit;
                end loop;
            end loop;
        end loop;
    end loop;
end
$$;

-- types_of: the job types that are pending in a queue. One look for each.
create or replace function {schema}.types_of(queue_name text) returns text[]
language plpgsql stable
set plan_cache_mode = force_generic_plan
set jit = off
set enable_seqscan = off
set enable_bitmapscan = off
set enable_sort = off
as $$
#variable_conflict use_column
declare
    types_max constant integer := 1000;
    found_types text[] := '{{}}';
    last_key text := types_of.queue_name || ' ';
    kind text;
begin
    loop
        select j.queue_name || ' ' || j.job_type, j.job_type into last_key, kind
        from {schema}.jobs as j
        where j.is_claimable and j.queue_name || ' ' || j.job_type > last_key
        order by j.queue_name || ' ' || j.job_type
        limit 1;
        exit when not found or not starts_with(last_key, types_of.queue_name || ' ') or cardinality(found_types) >= types_max;
        found_types := found_types || kind;
    end loop;
    return found_types;
end
$$;
