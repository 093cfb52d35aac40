-- erase: delete all that is kept of a person or a tenant: jobs and dead letters, with results,
-- progress, headers and the history of their attempts. If a tenant alone is named, delete whatever
-- else it has, too. All of it is one statement.
--
-- In:     whose:
--         org_id      a tenant.
--         unique_key  jobs that were enqueued under this key.
--         payload     jobs whose payload contains this, as `@>` has it. Also hooks: the payload of
--                     a hook has in it that of the job that has ended.
--         and, if only a part of that is meant: queue_name, job_type.
--         One of the first three is to be given. All that are given must fit.
--         why, who    for the trail: the number of a request, say; never the data. `who` null: the
--                     role of the session, which is noted in any case.
-- Out:    jobs_erased, letters_erased: how many.
--         held: how many jobs a worker or another transaction holds. A job that runs is cancelled,
--         and stays until its handler has stopped. Call erase again then.
--         refused: how many a constraint or a trigger of the user's keeps.
--         erasure_id: what the rows of the trail have in common.
-- Errors: arguments that name nobody, or everybody, are refused with PNQ02.
-- Rights: the admin's and the owner's. A role that may not delete a tenant's credentials may not
--         erase. So no program can erase that was granted only to enqueue, or to work.
--
-- A client asks for it in batches (erase_batch), each a transaction of its own, so that no
-- transaction holds the locks of all.
create or replace function {schema}.erase(
    org_id uuid default null, unique_key text default null, payload jsonb default null, queue_name text default null,
    job_type text default null, why text default null, who text default null)
returns table (jobs_erased integer, letters_erased integer, held integer, refused integer, erasure_id uuid)
language plpgsql volatile
as $$
#variable_conflict use_column
declare
    part record;
    stage_now text := 'jobs';
    after uuid;
begin
    jobs_erased := 0;
    letters_erased := 0;
    held := 0;
    refused := 0;
    erasure_id := {schema}.new_id();
    while stage_now is not null loop
        select b.* into part
        from {schema}.erase_batch(
            erasure_id, erase.org_id, erase.unique_key, erase.payload, erase.queue_name, erase.job_type, erase.why, erase.who,
            stage_now, after, 10000) as b;
        jobs_erased := jobs_erased + part.jobs_erased;
        letters_erased := letters_erased + part.letters_erased;
        held := held + part.held;
        refused := refused + part.refused;
        stage_now := part.next_stage;
        after := part.last_id;
    end loop;
    return next;
end
$$;

-- erase_batch: erase, one bounded batch of it.
--
-- In:     as of erase; and erasure_id, the same for all batches.
--         stage, after_id: where the batch before ended. It begins with 'jobs' and null. Then come
--         'letters', and of a whole tenant 'history' (attempts whose job is gone) and 'tenant'
--         (schedules, settings, credentials, its name).
--         jobs_max: how many rows are looked at.
-- Out:    as of erase; and where to go on from. `next_stage` null: that was the last.
-- Locks:  the rows, `skip locked`: nobody waits for a transaction that holds a row for long. Such a
--         row is told as held.
-- Index:  the primary keys. All batches together read each table once. Rows of the trail stay
--         (prune_audit): they are the proof that the erasure was done.
create or replace function {schema}.erase_batch(
    erasure_id uuid, org_id uuid, unique_key text, payload jsonb, queue_name text, job_type text, why text, who text,
    stage text, after_id uuid, jobs_max integer)
returns table (jobs_erased integer, letters_erased integer, held integer, refused integer, next_stage text, last_id uuid)
language plpgsql volatile
set plan_cache_mode = force_generic_plan
set jit = off
set enable_seqscan = off
set enable_bitmapscan = off
as $$
#variable_conflict use_column
declare
    nobody constant uuid := '00000000-0000-0000-0000-000000000000';
    is_whole_tenant constant boolean := erase_batch.org_id is not null
        and num_nonnulls(erase_batch.unique_key, erase_batch.payload, erase_batch.queue_name, erase_batch.job_type) = 0;
    stages constant text[] := array['jobs', 'letters'] || case when is_whole_tenant then array['history', 'tenant'] else '{{}}' end;
    place constant integer := array_position(stages, erase_batch.stage);
    seen uuid[];
    meant uuid[];
    locked uuid[];
    gone uuid[];  -- the tenants of what was erased, one each
    one uuid;
    org uuid;
begin
    perform {schema}.check_erasure(erase_batch.org_id, erase_batch.unique_key, erase_batch.payload);
    if erase_batch.erasure_id is null or place is null then
        raise exception 'stage % of an erasure is not known', quote_nullable(erase_batch.stage)
            using errcode = 'PNQ02', hint = 'Begin with ''jobs'', and go on with what the batch before returned.';
    end if;
    if erase_batch.jobs_max is null or erase_batch.jobs_max < 1 then
        raise exception 'jobs_max % is out of range', erase_batch.jobs_max using errcode = 'PNQ02', hint = 'Use 1 or more.';
    end if;
    jobs_erased := 0;
    letters_erased := 0;
    held := 0;
    refused := 0;
    if stage = 'jobs' then
        select array_agg(b.id order by b.id), coalesce(array_agg(b.id order by b.id) filter (where b.is_meant), '{{}}')
        into seen, meant
        from (
            select j.id, {schema}.is_meant(
                j.org_id, j.unique_key, j.payload, j.queue_name, j.job_type,
                erase_batch.org_id, erase_batch.unique_key, erase_batch.payload, erase_batch.queue_name, erase_batch.job_type) as is_meant
            from {schema}.jobs as j
            where j.id > coalesce(erase_batch.after_id, nobody)
            order by j.id
            limit erase_batch.jobs_max
        ) as b;
        -- If a row was written since, the condition is asked again.
        select coalesce(array_agg(l.id order by l.id), '{{}}') into locked
        from (
            select j.id from {schema}.jobs as j
            where j.id = any (meant) and {schema}.is_meant(
                j.org_id, j.unique_key, j.payload, j.queue_name, j.job_type,
                erase_batch.org_id, erase_batch.unique_key, erase_batch.payload, erase_batch.queue_name, erase_batch.job_type)
            order by j.id
            for update skip locked
        ) as l;
        begin
            update {schema}.jobs as j set status = 'cancelled', error_message = 'erased'
            where j.id = any (locked) and j.is_held and j.status = 'running';
            with erased as (
                delete from {schema}.jobs as j where j.id = any (locked) and not j.is_held returning j.org_id
            )
            select coalesce(array_agg(e.org_id), '{{}}') into gone from erased as e;
            set constraints all immediate;
        exception
            when others or assert_failure then
                if not {schema}.is_rows_own(sqlstate) then
                    raise;
                end if;
                gone := null;
        end;
        if gone is null then
            -- One row stands in the way: a row of the user's refers to it, say. Delete each apart.
            gone := '{{}}';
            foreach one in array locked loop
                begin
                    set constraints all deferred;
                    delete from {schema}.jobs as j where j.id = one and not j.is_held returning j.org_id into org;
                    if found then
                        set constraints all immediate;
                        gone := gone || org;
                    else
                        update {schema}.jobs as j set status = 'cancelled', error_message = 'erased'
                        where j.id = one and j.status = 'running';
                    end if;
                exception
                    when others or assert_failure then
                        if not {schema}.is_rows_own(sqlstate) then
                            raise;
                        end if;
                        refused := refused + 1;
                end;
            end loop;
        end if;
        jobs_erased := cardinality(gone);
        -- A transaction that has locked a row, or has written it since it was read, holds it as
        -- well.
        held := greatest((select count(*) from {schema}.jobs as j where j.id = any (meant)) - refused, 0);
    elsif stage = 'letters' then
        select array_agg(b.id order by b.id), coalesce(array_agg(b.id order by b.id) filter (where b.is_meant), '{{}}')
        into seen, meant
        from (
            select d.id, {schema}.is_meant(
                d.org_id, d.unique_key, d.payload, d.queue_name, d.job_type,
                erase_batch.org_id, erase_batch.unique_key, erase_batch.payload, erase_batch.queue_name, erase_batch.job_type) as is_meant
            from {schema}.dead_letter_jobs as d
            where d.id > coalesce(erase_batch.after_id, nobody)
            order by d.id
            limit erase_batch.jobs_max
        ) as b;
        select coalesce(array_agg(l.id order by l.id), '{{}}') into locked
        from (
            select d.id from {schema}.dead_letter_jobs as d where d.id = any (meant) order by d.id for update skip locked
        ) as l;
        begin
            with erased as (
                delete from {schema}.dead_letter_jobs as d where d.id = any (locked) returning d.org_id
            )
            select coalesce(array_agg(e.org_id), '{{}}') into gone from erased as e;
            set constraints all immediate;
        exception
            when others or assert_failure then
                if not {schema}.is_rows_own(sqlstate) then
                    raise;
                end if;
                gone := null;
        end;
        if gone is null then
            gone := '{{}}';
            foreach one in array locked loop
                begin
                    set constraints all deferred;
                    delete from {schema}.dead_letter_jobs as d where d.id = one returning d.org_id into org;
                    if found then
                        set constraints all immediate;
                        gone := gone || org;
                    end if;
                exception
                    when others or assert_failure then
                        if not {schema}.is_rows_own(sqlstate) then
                            raise;
                        end if;
                        refused := refused + 1;
                end;
            end loop;
        end if;
        letters_erased := cardinality(gone);
        held := greatest((select count(*) from {schema}.dead_letter_jobs as d where d.id = any (meant)) - refused, 0);
    elsif stage = 'history' then
        -- The jobs were deleted by a role that may not delete their history.
        select array_agg(distinct b.job_id order by b.job_id) into seen
        from (
            select e.job_id from {schema}.job_executions as e
            where e.job_id > coalesce(erase_batch.after_id, nobody)
            order by e.job_id
            limit erase_batch.jobs_max
        ) as b;
        delete from {schema}.job_executions as e
        where e.job_id = any (seen) and e.org_id = erase_batch.org_id
          and not exists (select from {schema}.jobs as j where j.id = e.job_id and j.org_id = e.org_id)
          and not exists (select from {schema}.dead_letter_jobs as d where d.id = e.job_id and d.org_id = e.org_id);
        gone := '{{}}';
    else
        delete from {schema}.schedules as s where s.org_id = erase_batch.org_id;
        delete from {schema}.org_config as c where c.org_id = erase_batch.org_id;
        delete from {schema}.org_credentials as c where c.org_id = erase_batch.org_id;
        delete from {schema}.org_names as n where n.org_id = erase_batch.org_id;
        gone := array[erase_batch.org_id];
    end if;
    perform {schema}.audit_for(g.org_id, 'erase', jsonb_strip_nulls(jsonb_build_object(
        'erasure', erase_batch.erasure_id, 'what', erase_batch.stage, 'erased', case when stage <> 'tenant' then g.count end,
        'who', left(erase_batch.who, 200), 'why', left(erase_batch.why, 1000),
        'by', to_jsonb(array_remove(array[
            case when erase_batch.org_id is not null then 'org_id' end,
            case when erase_batch.unique_key is not null then 'unique_key' end,
            case when erase_batch.payload is not null then 'payload' end,
            case when erase_batch.queue_name is not null then 'queue_name' end,
            case when erase_batch.job_type is not null then 'job_type' end], null)))))
    from (select g.org_id, count(*) from unnest(gone) as g(org_id) group by g.org_id) as g;
    if stage <> 'tenant' and cardinality(seen) > 0 then
        next_stage := stage;
        last_id := seen[cardinality(seen)];
    else
        next_stage := stages[place + 1];
    end if;
    return next;
end
$$;

-- check_erasure: refuse arguments that name nobody or everybody, and a role that may not erase.
create or replace function {schema}.check_erasure(org_id uuid, unique_key text, payload jsonb) returns void
language plpgsql stable
as $$
begin
    if not has_table_privilege('{schema}.org_credentials', 'delete') then
        raise exception 'permission denied: role % may not erase', current_user
            using errcode = 'insufficient_privilege', hint = 'Connect as an admin (migrate --grant-admin), or as the owner.';
    end if;
    if num_nonnulls(check_erasure.org_id, check_erasure.unique_key, check_erasure.payload) = 0 then
        raise exception 'nobody is named whose jobs are to be erased'
            using errcode = 'PNQ02', hint = 'Give org_id, unique_key or payload. To delete jobs of a queue or a type, delete them.';
    end if;
    if check_erasure.payload is not null
        and (jsonb_typeof(check_erasure.payload) <> 'object' or check_erasure.payload = '{{}}')
    then
        raise exception 'the payload to look for is no object with a key'
            using errcode = 'PNQ02', hint = 'Say what is in the payloads that are meant, as ''{{"user": 17}}''.';
    end if;
end
$$;

-- is_meant: whether a job or dead letter is one of those that are to be erased. What it has comes
-- first; what is to be looked for comes second. The function is SQL of one expression, so that the
-- planner puts the expression in its place.
create or replace function {schema}.is_meant(
    org_id uuid, unique_key text, payload jsonb, queue_name text, job_type text,
    wanted_org_id uuid, wanted_unique_key text, wanted_payload jsonb, wanted_queue_name text, wanted_job_type text)
returns boolean
language sql immutable
as $$
    select (is_meant.wanted_org_id is null or is_meant.org_id = is_meant.wanted_org_id)
        and (is_meant.wanted_unique_key is null or coalesce(is_meant.unique_key = is_meant.wanted_unique_key, false))
        and (is_meant.wanted_queue_name is null or is_meant.queue_name = is_meant.wanted_queue_name)
        and (is_meant.wanted_job_type is null or is_meant.job_type = is_meant.wanted_job_type)
        and (is_meant.wanted_payload is null or is_meant.payload @> is_meant.wanted_payload
             or coalesce(is_meant.payload -> 'payload' @> is_meant.wanted_payload, false))
$$;
