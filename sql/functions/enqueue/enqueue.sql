-- enqueue: one job from SQL, in the caller's own transaction. The job exists if and only if that
-- transaction commits.
--
-- In:     `queue_name` null: the queue that the job type's handler wants, else `default`. If no
--         handler is known yet, the first that is published takes the job to its queue.
--         `max_attempts` null: as the handler says that claims the job, else 15. `headers`: a JSON
--         object, which the handler sees as job.headers.
--         `unique_key` alone: while an unfinished job of the tenant and type has it, no other is
--         made. `unique_by`: the fields of the payload that make the key; an empty array: all of
--         it. The other `unique_...` are in enqueue_unique.sql; `unique_while` is pending or
--         unfinished, `unique_scope` job_type or global.
-- Out:    the id of the job; if its key is taken, and the job that holds it is kept or replaced,
--         the id of that job.
-- Errors: a job that is refused, as its key is taken, raises unique_violation. Invalid names,
--         numbers and times are refused with PNQ02 and a hint, by the rules of
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
    headers jsonb default null,
    unique_by text[] default null,
    unique_while text default null,
    unique_for_seconds double precision default null,
    unique_on_conflict text default null,
    unique_replace text[] default null,
    unique_scope text default null,
    unique_longest_wait_seconds double precision default null)
returns uuid
language plpgsql volatile
as $$
#variable_conflict use_column
declare
    -- Null, as nearly always: nothing is said. To make the object takes a fifth of the time of the
    -- call.
    rule jsonb;
    own_key text := enqueue.unique_key;
    job_id uuid;
    outcome text;
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

    if num_nonnulls(enqueue.unique_scope, enqueue.unique_while, unique_for_seconds, unique_on_conflict, unique_replace,
        unique_longest_wait_seconds) > 0
    then
        rule := nullif(jsonb_strip_nulls(jsonb_build_object(
            'scope', case enqueue.unique_scope when 'global' then '*' when 'job_type' then null else enqueue.unique_scope end,
            'while', nullif(enqueue.unique_while, 'unfinished'), 'for_seconds', unique_for_seconds,
            'on_conflict', unique_on_conflict, 'replace', to_jsonb(unique_replace),
            'longest_wait_seconds', unique_longest_wait_seconds)), '{{}}');
    end if;
    if unique_by is not null then
        if own_key is not null then
            raise exception 'both unique_key and unique_by are given'
                using errcode = 'PNQ02', hint = 'Pass one of them.';
        end if;
        own_key := ({schema}.unique_keys_of(
            array[coalesce(enqueue.payload, 'null')],
            array[case when unique_by = '{{}}' then to_jsonb(true) else to_jsonb(unique_by) end], array[null::text]))[1];
    end if;
    if own_key is null then
        if rule is not null then
            raise exception 'what is unique is said, and no key' using errcode = 'PNQ02', hint = 'Pass unique_key or unique_by.';
        end if;
        insert into {schema}.jobs as j (
            org_id, queue_name, job_type, payload, priority, scheduled_at, max_attempts, queue_not_said, headers)
        values (
            enqueue.org_id, own_queue, enqueue.job_type, coalesce(enqueue.payload, 'null'), enqueue.priority::smallint,
            coalesce(enqueue.scheduled_at, {schema}.clock()), enqueue.max_attempts,
            enqueue.queue_name is null and known_queue is null, nullif(enqueue.headers, '{{}}'))
        returning j.id into job_id;
        return job_id;
    end if;

    perform {schema}.check_unique(rule);
    select i.job_id, i.outcome into job_id, outcome
    from {schema}.insert_unique(
        -- The id is chosen here, so that a superseded job can say which job has superseded it. A
        -- tenant may not choose ids.
        case when has_column_privilege('{schema}.jobs', 'id', 'insert') then {schema}.new_id() end, enqueue.org_id, own_queue,
        enqueue.job_type, coalesce(enqueue.payload, 'null'), enqueue.priority::smallint,
        coalesce(enqueue.scheduled_at, {schema}.clock()), enqueue.max_attempts, own_key,
        enqueue.queue_name is null and known_queue is null, nullif(enqueue.headers, '{{}}'), rule) as i;
    if outcome = 'refused' then
        raise exception 'the key % is held by job %', quote_literal(own_key), job_id
            using errcode = 'unique_violation', hint = 'Wait for that job, cancel it, or pass another unique_on_conflict.';
    end if;
    return job_id;
end
$$;

-- check_unique: refuse what a `unique` may not say, by the rules of pgnotifyq/model/unique.py.
create or replace function {schema}.check_unique(unique_rule jsonb) returns void
language plpgsql immutable
as $$
begin
    if unique_rule->>'on_conflict' not in ('keep', 'replace', 'refuse', 'supersede') then
        raise exception 'unique_on_conflict % is not known', quote_literal(unique_rule->>'on_conflict')
            using errcode = 'PNQ02', hint = 'Use keep, replace, refuse or supersede.';
    end if;
    if unique_rule->>'while' <> 'pending' then
        raise exception 'unique_while % is not known', quote_literal(unique_rule->>'while')
            using errcode = 'PNQ02', hint = 'Use pending or unfinished.';
    end if;
    if unique_rule->>'scope' <> '*' then
        raise exception 'unique_scope % is not known', quote_literal(unique_rule->>'scope')
            using errcode = 'PNQ02', hint = 'Use job_type or global.';
    end if;
    if unique_rule ? 'for_seconds' and (unique_rule ? 'while'
        or not ((unique_rule->>'for_seconds')::double precision > 0 and (unique_rule->>'for_seconds')::double precision <= 316224000))
    then
        raise exception 'unique_for_seconds % is out of range, or given with unique_while', unique_rule->>'for_seconds'
            using errcode = 'PNQ02', hint = 'Use more than 0, to 316224000, ten years.';
    end if;
    if not (unique_rule->>'longest_wait_seconds')::double precision between 0 and 316224000 then
        raise exception 'unique_longest_wait_seconds % is out of range', unique_rule->>'longest_wait_seconds'
            using errcode = 'PNQ02', hint = 'Use 0 to 316224000, ten years.';
    end if;
    if not unique_rule->'replace' <@ '["payload", "scheduled_at", "priority"]' or unique_rule->'replace' = '[]' then
        raise exception 'unique_replace % is not known', unique_rule->>'replace'
            using errcode = 'PNQ02', hint = 'Use some of payload, scheduled_at and priority.';
    end if;
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
