-- enqueue: one job from SQL, in the caller's own transaction. The job exists if and only if that transaction commits.
--
-- Out:    the id of the job; with a unique_key, that of the unfinished job that holds it already.
-- Errors: invalid names and numbers are refused with check_violation and a hint; the payload is a JSON value.
create or replace function {schema}.enqueue(
    job_type text,
    payload jsonb default '{{}}',
    org_id uuid default '00000000-0000-0000-0000-000000000000',
    queue_name text default 'default',
    priority integer default 0,
    scheduled_at timestamptz default null,
    max_attempts integer default 3,
    unique_key text default null)
returns uuid
language plpgsql volatile
as $$
#variable_conflict use_column
declare
    job_id uuid;
begin
    if enqueue.job_type is null or enqueue.job_type !~ '^[A-Za-z0-9_][A-Za-z0-9_.:-]{{0,126}}$' then
        raise exception 'job type % is not valid', quote_nullable(enqueue.job_type)
            using errcode = 'PNQ02', hint = 'Use 1 to 127 letters, digits and _ . : - (not first: . : -).';
    end if;
    if enqueue.queue_name is null or enqueue.queue_name !~ '^[A-Za-z0-9_][A-Za-z0-9_.:-]{{0,62}}$' then
        raise exception 'queue name % is not valid', quote_nullable(enqueue.queue_name)
            using errcode = 'PNQ02', hint = 'Use 1 to 63 letters, digits and _ . : - (not first: . : -).';
    end if;
    if enqueue.priority is null or enqueue.priority not between -32768 and 32767 then
        raise exception 'priority % is out of range', coalesce(enqueue.priority::text, 'null')
            using errcode = 'PNQ02', hint = 'Use -32768 to 32767; higher comes first.';
    end if;
    if enqueue.max_attempts is null or enqueue.max_attempts not between 1 and 1000 then
        raise exception 'max_attempts % is out of range', coalesce(enqueue.max_attempts::text, 'null')
            using errcode = 'PNQ02', hint = 'Use 1 to 1000.';
    end if;
    if octet_length(enqueue.payload::text) > 1048576 then
        raise exception 'the payload has % bytes', octet_length(enqueue.payload::text)
            using errcode = 'PNQ02', hint = 'At most 1048576 bytes of JSON; store the data elsewhere and enqueue a reference.';
    end if;

    -- Naively: insert, and look up who holds the key that was taken. A holder that ends between the two is found by neither.
    loop
        insert into {schema}.jobs as j (
            org_id, queue_name, job_type, payload, priority, scheduled_at, max_attempts, unique_key)
        values (
            enqueue.org_id, enqueue.queue_name, enqueue.job_type, coalesce(enqueue.payload, 'null'), enqueue.priority::smallint,
            coalesce(enqueue.scheduled_at, {schema}.clock()), enqueue.max_attempts, enqueue.unique_key)
        on conflict (org_id, unique_key) where holds_unique_key do nothing
        returning j.id into job_id;
        exit when job_id is not null;
        select j.id into job_id
        from {schema}.jobs as j
        where j.org_id = enqueue.org_id and j.unique_key = enqueue.unique_key and j.holds_unique_key;
        exit when job_id is not null;
    end loop;
    return job_id;
end
$$;
