-- blank: take the payloads and results out of finished jobs whose rows are kept for longer
-- (set_retention); one bounded batch.
--
-- In:     `after_id` is where the last batch ended: a pass walks the primary key once, as prune's.
-- Out:    how many jobs were blanked, and the id to go on from (null: the pass has reached the
--         end, or nothing is said of payloads and results).
-- Locks:  the rows, `skip locked`.
--
-- With the payload go the headers, with the result the message of the progress. A payload becomes
-- the null of JSON, which no door enqueues. No column of an index changes, so the update is
-- heap-only where the page has room, and the row becomes smaller. What is blank is not written
-- again.
--
-- A job that cannot be written, for a trigger of the user's refuses it, say, is put aside
-- (job_troubles), as by prune.
create or replace function {schema}.blank(after_id uuid, jobs_max integer)
returns table (blanked integer, last_id uuid)
language plpgsql volatile
set plan_cache_mode = force_generic_plan
set jit = off
set enable_seqscan = off
set enable_bitmapscan = off
set lock_timeout = '100ms'  -- of what triggers of the user's want; rows are not waited for
as $$
#variable_conflict use_column
declare
    time_now constant timestamptz := {schema}.clock();
    has_troubles constant boolean := exists (select from {schema}.job_troubles);
    seen uuid[];
    over_ids uuid[];
    one uuid;
    org uuid;
    state text;
    said text;
begin
    blanked := 0;
    if not exists (
        select from {schema}.retention as r
        where r.ending in ('completed', 'cancelled') and (r.payload_seconds is not null or r.result_seconds is not null))
    then
        return next;
        return;
    end if;
    select array_agg(b.id order by b.id), coalesce(array_agg(b.id order by b.id) filter (where b.is_over), '{{}}')
    into seen, over_ids
    from (
        select j.id, {schema}.is_to_blank(j, time_now)
            and not (has_troubles and {schema}.is_in_trouble(j.org_id, j.id, time_now)) as is_over
        from {schema}.jobs as j
        where j.id > coalesce(after_id, '00000000-0000-0000-0000-000000000000')
        order by j.id
        limit jobs_max
    ) as b;
    if cardinality(seen) = jobs_max then
        last_id := seen[cardinality(seen)];
    end if;
    if cardinality(over_ids) = 0 then
        return next;
        return;
    end if;
    begin
        with locked as materialized (
            select j.id from {schema}.jobs as j
            where j.id = any (over_ids) and j.completed_at is not null and not j.is_held
            for update skip locked
        ), written as (
            update {schema}.jobs as j set (payload, headers, result, progress_message) = (
                select b.payload_left, b.headers_left, b.result_left, b.message_left from {schema}.blanked(j, time_now) as b)
            from locked
            where j.id = any (over_ids) and j.id = locked.id
            returning j.id
        )
        select count(*) into blanked from written;
        set constraints all immediate;
    exception
        when others or assert_failure then
            if not {schema}.is_rows_own(sqlstate) then
                raise;
            end if;
            blanked := null;
    end;
    if blanked is null then
        blanked := 0;
        foreach one in array over_ids loop
            select j.org_id into org
            from {schema}.jobs as j
            where j.id = one and j.completed_at is not null and not j.is_held
            for update skip locked;
            continue when not found;
            begin
                set constraints all deferred;
                update {schema}.jobs as j set (payload, headers, result, progress_message) = (
                    select b.payload_left, b.headers_left, b.result_left, b.message_left from {schema}.blanked(j, time_now) as b)
                where j.id = one;
                if not found then
                    perform {schema}.refuse_unwritten();
                end if;
                set constraints all immediate;
                blanked := blanked + 1;
            exception
                when others or assert_failure then
                    get stacked diagnostics state = returned_sqlstate, said = message_text;
                    if not {schema}.is_rows_own(state) then
                        raise;
                    end if;
                    perform {schema}.note_trouble(org, one, 'prune', state, said);
            end;
        end loop;
    end if;
    return next;
end
$$;

-- is_blank: whether a payload is blank already. The size comes first: a large payload is not read.
create or replace function {schema}.is_blank(payload jsonb) returns boolean
language sql immutable
as $$ select case when pg_column_size(is_blank.payload) > 64 then false else is_blank.payload = 'null' end $$;

-- is_to_blank: whether a finished job has a payload or a result that is kept no longer.
create or replace function {schema}.is_to_blank(job {schema}.jobs, time_now timestamptz) returns boolean
language sql stable
as $$
    select not (job).is_held and (job).completed_at is not null and exists (
        select from {schema}.kept((job).queue_name, (job).status) as k
        where ((job).completed_at < time_now - make_interval(secs => k.payload_seconds)
               and (not {schema}.is_blank((job).payload) or (job).headers is not null))
           or ((job).completed_at < time_now - make_interval(secs => k.result_seconds)
               and ((job).result is not null or (job).progress_message is not null)))
$$;

-- blanked: what is left of what a finished job was given and has returned. One row.
create or replace function {schema}.blanked(job {schema}.jobs, time_now timestamptz)
returns table (payload_left jsonb, headers_left jsonb, result_left jsonb, message_left text)
language sql stable
as $$
    select case when o.payload then 'null'::jsonb else (job).payload end, case when not o.payload then (job).headers end,
        case when not o.result then (job).result end, case when not o.result then (job).progress_message end
    from (
        select coalesce((job).completed_at < time_now - make_interval(secs => k.payload_seconds), false) as payload,
            coalesce((job).completed_at < time_now - make_interval(secs => k.result_seconds), false) as result
        from {schema}.kept((job).queue_name, (job).status) as k
    ) as o
$$;
