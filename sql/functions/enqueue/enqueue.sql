-- enqueue: one job from SQL, in the caller's own transaction. The job exists if and only if that
-- transaction commits.
--
-- In:     `queue_name` null: the queue that the job type's handler wants, else `default`. If no
--         handler is known yet, the first that is published takes the job to its queue.
--         `max_attempts` null: what the handler says that claims the job, else 15. `headers`: a
--         JSON object, which the handler sees as job.headers.
-- Out:    the id of the job. If an unfinished job of the tenant and type holds the unique_key, the
--         id of that job.
-- Errors: invalid names, numbers and times are refused with PNQ02 and a hint, by the rules of
--         pgnotifyq/model/new_job.py. The payload is a JSON value.
create or replace function {schema}.enqueue(
    job_type text,
    payload jsonb default '{{}}',
    org_id uuid default '00000000-0000-0000-0000-000000000000',
    queue_name text default null,
    priority integer default 0,
    scheduled_at timestamptz default null,
    max_attempts integer default null,
    unique_key text default null,
    headers jsonb default null)
returns uuid
language plpgsql volatile
as $$
#variable_conflict use_column
declare
    job_id uuid;
    known_queue text;
    own_queue text;
begin
    if enqueue.job_type is null or enqueue.job_type !~ '^[A-Za-z0-9_][A-Za-z0-9_.:-]{{0,126}}$' then
        raise exception 'job type % is not valid', quote_nullable(enqueue.job_type)
            using errcode = 'PNQ02', hint = 'Use 1 to 127 letters, digits and _ . : - (not first: . : -).';
    end if;
    if enqueue.queue_name !~ '^[A-Za-z0-9_][A-Za-z0-9_.:-]{{0,62}}$' then
        raise exception 'queue name % is not valid', quote_nullable(enqueue.queue_name)
            using errcode = 'PNQ02', hint = 'Use 1 to 63 letters, digits and _ . : - (not first: . : -).';
    end if;
    if enqueue.priority is null or enqueue.priority not between -32768 and 32767 then
        raise exception 'priority % is out of range', coalesce(enqueue.priority::text, 'null')
            using errcode = 'PNQ02', hint = 'Use -32768 to 32767; higher comes first.';
    end if;
    if enqueue.max_attempts not between 1 and 1000 then
        raise exception 'max_attempts % is out of range', enqueue.max_attempts
            using errcode = 'PNQ02', hint = 'Use 1 to 1000.';
    end if;
    if not isfinite(enqueue.scheduled_at)
        or extract(year from enqueue.scheduled_at at time zone 'UTC') not between 2 and 9998
    then
        raise exception 'scheduled_at % is out of range', enqueue.scheduled_at
            using errcode = 'PNQ02', hint = 'Use a year from 2 to 9998.';
    end if;
    if octet_length(enqueue.payload::text) > 1048576 and {schema}.compact_bytes(enqueue.payload) > 1048576 then
        raise exception 'the payload has % bytes', {schema}.compact_bytes(enqueue.payload)
            using errcode = 'PNQ02', hint = 'At most 1048576 bytes of JSON; store the data elsewhere and enqueue a reference.';
    end if;

    if jsonb_typeof(enqueue.headers) <> 'object' then
        raise exception 'the headers are no JSON object, but of type %', jsonb_typeof(enqueue.headers)
            using errcode = 'PNQ02', hint = 'Use an object: {{"request_id": "..."}}.';
    end if;
    if {schema}.compact_bytes(enqueue.headers) > 8192 or octet_length(enqueue.headers::text) > 16384 then
        raise exception 'the headers have % bytes', {schema}.compact_bytes(enqueue.headers)
            using errcode = 'PNQ02', hint = 'At most 8192 bytes of JSON; put the data into the payload.';
    end if;

    if enqueue.queue_name is null then
        known_queue := {schema}.queue_of(enqueue.job_type);
    end if;
    own_queue := coalesce(enqueue.queue_name, known_queue, 'default');

    -- Naively: insert, and if the key is taken, look up the job that holds it. If that job ends
    -- between the two statements, neither finds it.
    loop
        insert into {schema}.jobs as j (
            org_id, queue_name, job_type, payload, priority, scheduled_at, max_attempts, unique_key, queue_not_said, headers)
        values (
            enqueue.org_id, own_queue, enqueue.job_type, coalesce(enqueue.payload, 'null'), enqueue.priority::smallint,
            coalesce(enqueue.scheduled_at, {schema}.clock()), enqueue.max_attempts, enqueue.unique_key,
            enqueue.queue_name is null and known_queue is null, nullif(enqueue.headers, '{{}}'))
        on conflict (org_id, job_type, unique_key) where holds_unique_key do nothing
        returning j.id into job_id;
        exit when job_id is not null;
        if {schema}.own_only() then
            job_id := {schema}.key_holder(enqueue.org_id, enqueue.job_type, enqueue.unique_key);
        else
            select j.id into job_id
            from {schema}.jobs as j
            where j.org_id = enqueue.org_id and j.job_type = enqueue.job_type and j.unique_key = enqueue.unique_key
              and j.holds_unique_key;
        end if;
        exit when job_id is not null;
    end loop;
    return job_id;
end
$$;

-- compact_bytes: how many bytes a payload has as compact JSON. Clients count the same. PostgreSQL
-- writes a space behind each comma and colon; it is not counted.
create or replace function {schema}.compact_bytes(payload jsonb) returns integer
language plpgsql immutable strict
as $$
declare
    whole text := payload::text;
    bare text;
begin
    -- At least two bytes that are no space stand before each such space. So a longer text is too
    -- large in any case, and need not be counted.
    if octet_length(whole) > 4000000 then
        return octet_length(whole);
    end if;
    bare := regexp_replace(whole, '"(?:[^"\\]|\\.)*"', '', 'g');
    return octet_length(whole) - (length(bare) - length(replace(bare, ' ', '')));
end
$$;
