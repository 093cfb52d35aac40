-- insert_unique: enqueue one job that has a unique key. enqueue calls it; so does enqueue_unique,
-- for those jobs of a batch whose keys are taken.
--
-- In:     `new_id` null: the database chooses the id. `queue_name` is resolved, and the rest is
--         checked. `unique_rule` says what `unique` says (enqueue_unique.sql). Null or empty: the
--         key is unique within the type until the job has ended, and on conflict the job that has
--         the key is kept. `is_taken`: the key is known to be taken.
-- Out:    `outcome`: created; superseded: created, and the job that had the key was cancelled;
--         kept, replaced, refused: `job_id` is the job that has the key.
-- Locks:  the entry of jobs_unique_key: another session that inserts the same key waits for this
--         transaction. The job that holds the key, as pass_key says.
-- Index:  jobs_unique_key, which decides.
-- Errors: if a trigger of the user's leaves the job out, PNQ02 says so. It looks as if another job
--         took the key and let it go again, time after time: so tries are counted.
create or replace function {schema}.insert_unique(
    new_id uuid, org_id uuid, queue_name text, job_type text, payload jsonb, priority smallint, scheduled_at timestamptz,
    max_attempts integer, unique_key text, queue_not_said boolean, headers jsonb, unique_rule jsonb,
    is_taken boolean default false)
returns table (job_id uuid, outcome text)
language plpgsql volatile
as $$
#variable_conflict use_column
declare
    until_time constant timestamptz := {schema}.clock() + make_interval(secs => (unique_rule->>'for_seconds')::double precision);
    own_only constant boolean := {schema}.own_only();
    tries_max constant integer := 100;
    passed record;
    wait_id uuid;
    tries integer := 0;
begin
    outcome := 'created';
    loop
        tries := tries + 1;
        if tries > tries_max then
            raise exception 'the key % is free, and a job that wants it was not inserted', quote_literal(insert_unique.unique_key)
                using errcode = 'PNQ02', hint = 'Look for a trigger of yours on jobs that returns null; let it raise instead.';
        end if;
        if is_taken then
            is_taken := false;
        elsif insert_unique.new_id is not null then
            insert into {schema}.jobs as j (
                id, org_id, queue_name, job_type, payload, priority, scheduled_at, max_attempts, unique_key, queue_not_said, headers,
                    unique_scope, unique_while, unique_until)
            values (
                insert_unique.new_id, insert_unique.org_id, insert_unique.queue_name, insert_unique.job_type, insert_unique.payload,
                insert_unique.priority, insert_unique.scheduled_at, insert_unique.max_attempts, insert_unique.unique_key,
                insert_unique.queue_not_said, insert_unique.headers, unique_rule->>'scope', unique_rule->>'while', until_time)
            on conflict (org_id, (coalesce(unique_scope::text, job_type::text)), unique_key)
            where unique_key is not null and key_passed_on is null
              and (unique_until is not null or waits_for is not null or (is_claimable and (started_at is null or unique_while is null))
                   or (is_held and unique_while is null))
            do nothing
            returning j.id into job_id;
        else
            insert into {schema}.jobs as j (
                org_id, queue_name, job_type, payload, priority, scheduled_at, max_attempts, unique_key, queue_not_said, headers,
                    unique_scope, unique_while, unique_until)
            values (
                insert_unique.org_id, insert_unique.queue_name, insert_unique.job_type, insert_unique.payload,
                insert_unique.priority, insert_unique.scheduled_at, insert_unique.max_attempts, insert_unique.unique_key,
                insert_unique.queue_not_said, insert_unique.headers, unique_rule->>'scope', unique_rule->>'while', until_time)
            on conflict (org_id, (coalesce(unique_scope::text, job_type::text)), unique_key)
            where unique_key is not null and key_passed_on is null
              and (unique_until is not null or waits_for is not null or (is_claimable and (started_at is null or unique_while is null))
                   or (is_held and unique_while is null))
            do nothing
            returning j.id into job_id;
        end if;
        if job_id is not null then
            if wait_id is not null then
                perform {schema}.run_after(array[job_id], array[wait_id]);
            end if;
            return next;
            return;
        end if;
        -- A role that may not call pass_key may still keep.
        if coalesce(unique_rule->>'on_conflict', 'keep') = 'keep' then
            if own_only then
                job_id := {schema}.key_holder(
                    insert_unique.org_id, coalesce(unique_rule->>'scope', insert_unique.job_type), insert_unique.unique_key);
            else
                select j.id into job_id
                from {schema}.jobs as j
                where j.org_id = insert_unique.org_id
                  and {schema}.key_scope(j) = coalesce(unique_rule->>'scope', insert_unique.job_type)
                  and j.unique_key = insert_unique.unique_key
                  and {schema}.holds_key(j) and not {schema}.gives_up_key(j, {schema}.clock());
            end if;
            if job_id is not null then
                outcome := 'kept';
                return next;
                return;
            end if;
        end if;
        select p.* into passed
        from {schema}.pass_key(
            insert_unique.org_id, coalesce(unique_rule->>'scope', insert_unique.job_type), insert_unique.unique_key,
            coalesce(unique_rule->>'on_conflict', 'keep'),
            array(select jsonb_array_elements_text(coalesce(unique_rule->'replace', '["payload", "scheduled_at", "priority"]'))),
            insert_unique.payload, insert_unique.scheduled_at, insert_unique.priority,
            (unique_rule->>'longest_wait_seconds')::double precision, insert_unique.new_id) as p;
        if passed.became in ('kept', 'replaced', 'refused') then
            job_id := passed.holder;
            outcome := passed.became;
            return next;
            return;
        end if;
        wait_id := passed.waits_for;
        if passed.became = 'superseded' then
            outcome := 'superseded';
        end if;
    end loop;
end
$$;

-- unique_keys_of: the keys that jobs' payloads make, by some of their fields, or by all of them: a
-- digest, so that the key tells nothing of the payload.
--
-- In:     arrays of one length. `fields`: an array of names, as JSON, or true: the whole payload;
--         null: the payload makes no key.
-- Out:    the keys in order; where the payload makes none, what `unique_keys` says.
-- Errors: a field that the payload lacks is refused with PNQ02: with a wrong name, all jobs would
--         have the same key.
drop function if exists {schema}.unique_key_of(jsonb, text[]);
create or replace function {schema}.unique_keys_of(payloads jsonb[], fields jsonb[], unique_keys text[]) returns text[]
language plpgsql stable
as $$
declare
    keys text[];
    wrong bigint;
    missing text;
begin
    select
        array_agg(case when k.said is not null then 'by ' || encode(sha256(convert_to(k.said::text, 'UTF8')), 'hex')
            else k.unique_key end order by k.place),
        min(k.place) filter (where k.said is null and k.fields is not null)
    into keys, wrong
    from (
        select u.place, u.fields, u.unique_key,
            case when jsonb_typeof(u.fields) = 'array' then
                (
                    select jsonb_object_agg(f.name, u.payload -> f.name)
                    from jsonb_array_elements_text(u.fields) as f(name)
                    where jsonb_typeof(u.payload) = 'object'
                    having bool_and(u.payload ? f.name))
                when u.fields is not null then u.payload end as said
        from unnest(payloads, unique_keys_of.fields, unique_keys) with ordinality as u(payload, fields, unique_key, place)
        offset 0
    ) as k;
    if wrong is not null then
        if jsonb_typeof(payloads[wrong]) is distinct from 'object' then
            raise exception 'the payload is no JSON object, so it has no fields to be unique by'
                using errcode = 'PNQ02', hint = 'Use by=True, the whole payload, or a key.';
        end if;
        select f.name into missing
        from jsonb_array_elements_text(unique_keys_of.fields[wrong]) as f(name)
        where not payloads[wrong] ? f.name
        limit 1;
        raise exception 'the payload has no field %, which it is to be unique by', quote_literal(missing)
            using errcode = 'PNQ02', hint = 'Name fields that every payload of the type has, or use a key.';
    end if;
    return keys;
end
$$;
