-- blank: take the payloads and results out of finished jobs whose rows are kept for longer
-- (set_retention); one bounded batch.
--
-- In:     `after_id` is where the last batch ended: a pass walks the primary key once, as prune's.
-- Out:    how many jobs were blanked, and the id to go on from (null: the pass has reached the
--         end, or nothing is said of payloads and results).
-- Locks:  the rows, `skip locked`.
--
-- With the payload go the headers and what the handler had saved; with the result, the message of
-- the progress. A payload becomes the null of JSON, which no door enqueues. No column of an index
-- changes, so the update is heap-only where the page has room, and the row becomes smaller. What is
-- blank is not written again.
--
-- A job that cannot be written (a trigger of the user's refuses it, say) is put aside
-- (job_troubles), as by prune.
create or replace function {schema}.blank(after_id uuid, jobs_max integer)
returns table (blanked integer, last_id uuid)
language plpgsql volatile
set plan_cache_mode = force_generic_plan
set jit = off
set enable_seqscan = off
set enable_bitmapscan = off
set lock_timeout = '100ms'  -- for locks that triggers of the user's want; rows are not waited for
as $$
#variable_conflict use_column
declare
    time_now constant timestamptz := {schema}.clock();
    has_troubles constant boolean := exists (select from {schema}.job_troubles);
    seen uuid[];
    over_ids uuid[];
    one uuid;
    told integer;
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
        select j.id, not j.is_held and coalesce(
                j.completed_at < time_now - make_interval(secs => k.payload_seconds)
                    and (not {schema}.is_blank(j.payload) or j.headers is not null or j.saved is not null), false)
            or not j.is_held and coalesce(
                j.completed_at < time_now - make_interval(secs => k.result_seconds)
                    and (j.result is not null or j.progress_message is not null), false)
            as is_over
        from {schema}.jobs as j, lateral {schema}.kept(j.queue_name, j.status) as k
        where j.id > coalesce(after_id, '00000000-0000-0000-0000-000000000000')
        order by j.id
        limit jobs_max
    ) as b;
    if cardinality(seen) = jobs_max then
        last_id := seen[cardinality(seen)];
    end if;
    if has_troubles then
        over_ids := array(
            select j.id from {schema}.jobs as j
            where j.id = any (over_ids) and not {schema}.is_in_trouble(j.org_id, j.id, time_now));
    end if;
    if cardinality(over_ids) = 0 then
        return next;
        return;
    end if;
    begin
        blanked := {schema}.blank_these(over_ids, time_now);
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
            begin
                set constraints all deferred;
                told := {schema}.blank_these(array[one], time_now);
                set constraints all immediate;
                blanked := blanked + told;
            exception
                when others or assert_failure then
                    get stacked diagnostics state = returned_sqlstate, said = message_text;
                    if not {schema}.is_rows_own(state) then
                        raise;
                    end if;
                    perform {schema}.note_trouble(j.org_id, j.id, 'prune', state, said) from {schema}.jobs as j where j.id = one;
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

-- blank_these: take out of some finished jobs what is kept no longer. Return how many were written.
--
-- Errors: PNQ06: a trigger or rule of the user's keeps a row as it is.
-- Locks:  the rows, `skip locked`. Once a row is locked, it is asked again what is to go.
create or replace function {schema}.blank_these(job_ids uuid[], time_now timestamptz) returns integer
language plpgsql volatile
set plan_cache_mode = force_generic_plan
set jit = off
set enable_seqscan = off
set enable_bitmapscan = off
as $$
declare
    locked_count integer;
    written_count integer;
begin
    with locked as materialized (
        select j.id,
            coalesce(j.completed_at < time_now - make_interval(secs => k.payload_seconds), false) as payload_is_over,
            coalesce(j.completed_at < time_now - make_interval(secs => k.result_seconds), false) as result_is_over
        from {schema}.jobs as j, lateral {schema}.kept(j.queue_name, j.status) as k
        where j.id = any (job_ids) and j.completed_at is not null and not j.is_held
        for update of j skip locked
    ), written as (
        update {schema}.jobs as j
        set payload = case when l.payload_is_over then 'null' else j.payload end,
            headers = case when not l.payload_is_over then j.headers end,
            saved = case when not l.payload_is_over then j.saved end,
            result = case when not l.result_is_over then j.result end,
            progress_message = case when not l.result_is_over then j.progress_message end
        from locked as l
        where j.id = any (job_ids) and j.id = l.id
        returning j.id
    )
    select (select count(*) from locked), (select count(*) from written) into locked_count, written_count;
    if written_count < locked_count then
        perform {schema}.refuse_unwritten();
    end if;
    return written_count;
end
$$;
