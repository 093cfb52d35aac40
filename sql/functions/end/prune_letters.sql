-- prune_letters: delete dead letters, and their history, that died longer ago than they are kept,
-- and blank the payloads of others (set_retention); one bounded batch.
--
-- In:     `after_id` is where the last batch ended: a pass walks the primary key once.
-- Out:    how many were deleted; how many were blanked; the id to go on from (null: the pass has
--         reached the end, or nothing is said of dead letters).
-- Locks:  the rows, `skip locked`: a requeue comes first. Their history goes by a trigger.
--
-- With the payload go the headers, and what the handler had saved. A role may have been granted its
-- rights by hand before there was this function. If it may not update letters, it blanks none.
create or replace function {schema}.prune_letters(after_id uuid, jobs_max integer)
returns table (deleted integer, blanked integer, last_id uuid)
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
    may_blank constant boolean := has_column_privilege('{schema}.dead_letter_jobs', 'blanked_at', 'update')
        and has_column_privilege('{schema}.dead_letter_jobs', 'payload', 'update')
        and has_column_privilege('{schema}.dead_letter_jobs', 'headers', 'update')
        and has_column_privilege('{schema}.dead_letter_jobs', 'saved', 'update');
    seen uuid[];
    over_ids uuid[];
    blank_ids uuid[];
    one uuid;
begin
    deleted := 0;
    blanked := 0;
    if not exists (select from {schema}.retention as r where r.ending = 'dead') then
        return next;
        return;
    end if;
    select array_agg(b.id order by b.id), coalesce(array_agg(b.id order by b.id) filter (where b.is_over), '{{}}'),
        coalesce(array_agg(b.id order by b.id) filter (where b.is_to_blank and not b.is_over and may_blank), '{{}}')
    into seen, over_ids, blank_ids
    from (
        select d.id, coalesce(d.died_at < time_now - make_interval(secs => k.keep_seconds), false) as is_over,
            d.blanked_at is null and coalesce(d.died_at < time_now - make_interval(secs => k.payload_seconds), false) as is_to_blank
        from {schema}.dead_letter_jobs as d, lateral {schema}.kept(d.queue_name, 'dead') as k
        where d.id > coalesce(after_id, '00000000-0000-0000-0000-000000000000')
        order by d.id
        limit jobs_max
    ) as b;
    if cardinality(seen) = jobs_max then
        last_id := seen[cardinality(seen)];
    end if;
    begin
        if cardinality(over_ids) > 0 then
            with locked as materialized (
                select d.id from {schema}.dead_letter_jobs as d where d.id = any (over_ids) for update skip locked
            ), gone as (
                delete from {schema}.dead_letter_jobs as d using locked where d.id = any (over_ids) and d.id = locked.id returning d.id
            )
            select count(*) into deleted from gone;
        end if;
        if cardinality(blank_ids) > 0 then
            with locked as materialized (
                select d.id from {schema}.dead_letter_jobs as d where d.id = any (blank_ids) for update skip locked
            ), written as (
                update {schema}.dead_letter_jobs as d set payload = 'null', headers = null, saved = null, blanked_at = time_now
                from locked
                where d.id = any (blank_ids) and d.id = locked.id
                returning d.id
            )
            select count(*) into blanked from written;
        end if;
        set constraints all immediate;
        return next;
        return;
    exception
        when others or assert_failure then
            if not {schema}.is_rows_own(sqlstate) then
                raise;
            end if;
    end;
    -- One row stands in the way of the others, so each is tried apart. A letter that cannot be
    -- written stays, and the next pass looks at it again.
    deleted := 0;
    blanked := 0;
    foreach one in array over_ids loop
        begin
            set constraints all deferred;
            delete from {schema}.dead_letter_jobs as d where d.id = one;
            deleted := deleted + found::integer;
            set constraints all immediate;
        exception
            when others or assert_failure then
                if not {schema}.is_rows_own(sqlstate) then
                    raise;
                end if;
        end;
    end loop;
    foreach one in array blank_ids loop
        begin
            set constraints all deferred;
            update {schema}.dead_letter_jobs as d set payload = 'null', headers = null, saved = null, blanked_at = time_now where d.id = one;
            blanked := blanked + found::integer;
            set constraints all immediate;
        exception
            when others or assert_failure then
                if not {schema}.is_rows_own(sqlstate) then
                    raise;
                end if;
        end;
    end loop;
    return next;
end
$$;
