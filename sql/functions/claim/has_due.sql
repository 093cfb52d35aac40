-- has_due: whether a queue has a job that could be claimed now. Another worker may hold the lock of
-- its row.
create or replace function {schema}.has_due(queue_name text) returns boolean
language plpgsql volatile
set plan_cache_mode = force_generic_plan
set jit = off
set enable_seqscan = off
set enable_bitmapscan = off
set enable_sort = off
as $$
#variable_conflict use_column
declare
    time_now timestamptz := {schema}.clock();
    level integer := 32768;
begin
    loop
        select j.priority into level
        from {schema}.jobs as j
        where j.is_claimable and j.queue_name = has_due.queue_name and j.priority < level
        order by j.queue_name, j.priority desc
        limit 1;
        exit when not found;
        perform from {schema}.jobs as j
        where j.is_claimable and j.queue_name = has_due.queue_name and j.priority = level::smallint and j.scheduled_at <= time_now
        limit 1;
        if found then
            return true;
        end if;
    end loop;
    return false;
end
$$;

-- due_type: one of some job types, of which the queue has a job that could be claimed now. Null:
-- there is none.
-- Index: jobs_claimable_by_type.
create or replace function {schema}.due_type(queue_name text, job_types text[]) returns text
language plpgsql volatile
set plan_cache_mode = force_generic_plan
set jit = off
set enable_seqscan = off
set enable_bitmapscan = off
set enable_sort = off
as $$
#variable_conflict use_column
declare
    time_now timestamptz := {schema}.clock();
    level integer;
    kind text;
begin
    foreach kind in array coalesce(job_types, '{{}}') loop
        level := 32768;
        loop
            select j.priority into level
            from {schema}.jobs as j
            where j.is_claimable and j.queue_name || ' ' || j.job_type = due_type.queue_name || ' ' || kind and j.priority < level
            order by j.queue_name || ' ' || j.job_type, j.priority desc, j.scheduled_at, j.id
            limit 1;
            exit when not found;
            perform from {schema}.jobs as j
            where j.is_claimable and j.queue_name || ' ' || j.job_type = due_type.queue_name || ' ' || kind
              and j.priority = level::smallint and j.scheduled_at <= time_now
            limit 1;
            if found then
                return kind;
            end if;
        end loop;
    end loop;
    return null;
end
$$;
