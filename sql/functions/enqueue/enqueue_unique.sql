-- enqueue_unique: a batch of jobs in one statement, some of which have unique keys; all or none.
--
-- In:     arrays of one length, as of enqueue_many. `rules` null, or for each job null or what its
--         `unique` says, as JSON: {{"by": true or ["field", ...], "scope": "*", "while": "pending",
--         "for_seconds": 60, "on_conflict": "keep" (or replace, refuse, supersede), "replace":
--         ["payload", "scheduled_at", "priority"], "longest_wait_seconds": 60}}, each of which may
--         be missing. The client has checked it (model/unique.py).
-- Out:    one row a job, in any order: its place, from 1; its id; `outcome`, as of insert_unique.
--         If one is refused, none is enqueued, and only those rows are given that were refused.
-- Locks:  entries of jobs_unique_key, in order of tenant, scope and key. Then the jobs that hold
--         keys and are not simply kept, in the order of lock_keys. Two batches with the same keys
--         wait for each other, and do not deadlock.
-- Index:  jobs_pkey, jobs_unique_key, which decides.
--
-- Naively each job is inserted, and if its key is taken, what follows is done, before the next is
-- inserted. That is five times as slow, and it takes the rows of others between the entries of the
-- index: two batches deadlock, as does a batch with the worker that ends the jobs. So all are
-- inserted first. What was not, has a key that is taken: by a job of the batch, or of before.
--
-- If a job that held a key has ended since, the batch begins anew. Naively only that job is
-- inserted again; then the entry comes out of order.
create or replace function {schema}.enqueue_unique(
    job_ids uuid[], org_ids uuid[], queue_names text[], job_types text[], payloads text[], priorities smallint[],
    times timestamptz[], delays double precision[], maxima integer[], unique_keys text[], headers text[] default null,
    rules text[] default null)
returns table (place bigint, job_id uuid, outcome text)
language plpgsql volatile
set jit = off
set enable_seqscan = off
as $$
#variable_conflict use_column
declare
    tries_max constant integer := 100;
    deadlocks_max constant integer := 5;
    time_now constant timestamptz := {schema}.clock();
    own_only constant boolean := {schema}.own_only();
    -- A tenant chooses no ids. Its jobs get others than it says, and it is told them.
    chooses_ids constant boolean := has_column_privilege('{schema}.jobs', 'id', 'insert');
    known_queues text[];
    slots text[];
    made_ids uuid[];
    found_ids uuid[];
    outcomes text[];
    rest bigint[];  -- places of jobs whose keys are taken, and that are not simply kept
    are_locked boolean;
    one record;
    told record;
    tries integer := 0;
    deadlocks integer := 0;
begin
    if array_position(queue_names, null) is not null then
        select array_agg(k.queue_name order by n.place)
        into known_queues
        from unnest(queue_names, job_types) with ordinality as n(queue_name, job_type, place)
        left join (
            select t.job_type, {schema}.queue_of(t.job_type) as queue_name
            from (select distinct u.job_type from unnest(job_types) as u(job_type)) as t
        ) as k on k.job_type = n.job_type and n.queue_name is null;
    end if;
    if rules is not null then
        select
            array_agg(case when r.rule ? 'by' then {schema}.unique_key_of(
                    r.payload, case when jsonb_typeof(r.rule->'by') = 'array'
                        then array(select jsonb_array_elements_text(r.rule->'by')) end)
                else r.unique_key end order by r.place),
            array_agg(coalesce(r.rule->>'scope', r.job_type) order by r.place)
        into unique_keys, slots
        from (
            select u.unique_key, u.rule::jsonb as rule, u.job_type, u.place, case when u.rule is not null then u.payload::jsonb end as payload
            from unnest(unique_keys, rules, job_types, payloads) with ordinality as u(unique_key, rule, job_type, payload, place)
        ) as r;
    else
        slots := job_types;
    end if;

    if cardinality(job_ids) = 1 or not chooses_ids then
        for one in
            select n.*
            from unnest(job_ids, org_ids, queue_names, job_types, payloads, priorities, times, delays, maxima, unique_keys,
                known_queues, enqueue_unique.headers, rules, slots)
                with ordinality
                as n(id, org_id, queue_name, job_type, payload, priority, scheduled_at, delay, max_attempts, unique_key,
                    known_queue, headers, rule, slot, place)
            order by n.org_id, n.slot collate "C", n.unique_key collate "C", n.place
        loop
            return query
            select one.place, i.job_id, i.outcome
            from {schema}.insert_unique(
                case when chooses_ids then one.id end, one.org_id, coalesce(one.queue_name, one.known_queue, 'default'),
                one.job_type, one.payload::jsonb, one.priority,
                coalesce(one.scheduled_at, time_now + make_interval(secs => coalesce(one.delay, 0))), one.max_attempts,
                one.unique_key, one.queue_name is null and one.known_queue is null, one.headers::jsonb, one.rule::jsonb) as i;
        end loop;
        return;
    end if;

    loop
        tries := tries + 1;
        begin
            with made as (
                insert into {schema}.jobs (
                    id, org_id, queue_name, job_type, payload, priority, scheduled_at, max_attempts, unique_key, queue_not_said,
                    headers, unique_scope, unique_while, unique_until)
                select n.id, n.org_id, coalesce(n.queue_name, n.known_queue, 'default'), n.job_type, n.payload::jsonb, n.priority,
                    coalesce(n.scheduled_at, time_now + make_interval(secs => coalesce(n.delay, 0))), n.max_attempts, n.unique_key,
                    n.queue_name is null and n.known_queue is null, n.headers::jsonb, n.rule->>'scope', n.rule->>'while',
                    time_now + make_interval(secs => (n.rule->>'for_seconds')::double precision)
                from (
                    select n.*, n.rule_text::jsonb as rule
                    from unnest(job_ids, org_ids, queue_names, job_types, payloads, priorities, times, delays, maxima, unique_keys,
                        known_queues, enqueue_unique.headers, rules, slots)
                        with ordinality
                        as n(id, org_id, queue_name, job_type, payload, priority, scheduled_at, delay, max_attempts, unique_key,
                            known_queue, headers, rule_text, slot, place)
                    order by n.org_id, n.slot collate "C", n.unique_key collate "C", n.place
                    offset 0
                ) as n
                on conflict (org_id, (coalesce(unique_scope::text, job_type::text)), unique_key)
                where unique_key is not null and key_passed_on is null
                  and (unique_until is not null or waits_for is not null or (is_claimable and (started_at is null or unique_while is null))
                       or (is_held and unique_while is null))
                do nothing
                returning id
            )
            select array_agg(m.id) into made_ids from made as m;

            -- What was inserted, and what is simply kept.
            select array_agg(coalesce(n.own, n.kept) order by n.place),
                array_agg(case when n.own is not null then 'created' when n.kept is not null then 'kept' end order by n.place),
                array_agg(n.place) filter (where n.own is null and n.kept is null)
            into found_ids, outcomes, rest
            from (
                select n.*, o.id as own, case when o.id is null and n.on_conflict = 'keep' then
                    case when own_only then {schema}.key_holder(n.org_id, n.slot, n.unique_key)
                        else (
                            select j.id
                            from {schema}.jobs as j
                            where j.org_id = n.org_id and {schema}.key_scope(j) = n.slot and j.unique_key = n.unique_key
                              and {schema}.holds_key(j) and not {schema}.gives_up_key(j, time_now)) end
                    end as kept
                from (
                    select n.*, coalesce(n.rule_text::jsonb->>'on_conflict', 'keep') as on_conflict
                    from unnest(job_ids, org_ids, slots, unique_keys, rules) with ordinality
                        as n(id, org_id, slot, unique_key, rule_text, place)
                ) as n
                left join unnest(made_ids) as o(id) on o.id = n.id
                offset 0
            ) as n;

            if rest is not null then
                select {schema}.lock_keys(array_agg(n.org_id), array_agg(n.slot), array_agg(n.unique_key)) into are_locked
                from unnest(org_ids, slots, unique_keys) with ordinality as n(org_id, slot, unique_key, place)
                join unnest(rest) as r(place) using (place);
                if not are_locked and tries < tries_max then
                    raise exception 'a job that held a key has ended' using errcode = 'PNQ07';
                end if;
                -- Not by subscripts: a place in an array of texts is found by walking there.
                for one in
                    select n.id, n.org_id, coalesce(n.queue_name, n.known_queue, 'default') as queue_name,
                        n.queue_name is null and n.known_queue is null as queue_not_said, n.job_type,
                        n.payload::jsonb as payload, n.priority,
                        coalesce(n.scheduled_at, time_now + make_interval(secs => coalesce(n.delay, 0))) as scheduled_at,
                        n.max_attempts, n.unique_key, n.headers::jsonb as headers, n.rule::jsonb as rule, place
                    from unnest(job_ids, org_ids, queue_names, job_types, payloads, priorities, times, delays, maxima,
                        unique_keys, known_queues, enqueue_unique.headers, rules, slots)
                        with ordinality
                        as n(id, org_id, queue_name, job_type, payload, priority, scheduled_at, delay, max_attempts, unique_key,
                            known_queue, headers, rule, slot, place)
                    join unnest(rest) as r(place) using (place)
                    order by n.org_id, n.slot collate "C", n.unique_key collate "C", n.place
                loop
                    select i.job_id, i.outcome into told
                    from {schema}.insert_unique(
                        one.id, one.org_id, one.queue_name, one.job_type, one.payload, one.priority, one.scheduled_at,
                        one.max_attempts, one.unique_key, one.queue_not_said, one.headers, one.rule, true) as i;
                    found_ids[one.place] := told.job_id;
                    outcomes[one.place] := told.outcome;
                end loop;
                if 'refused' = any (outcomes) then
                    raise exception 'a job was refused' using errcode = 'PNQ07';
                end if;
            end if;
            exit;
        exception
            when deadlock_detected then
                deadlocks := deadlocks + 1;
                if deadlocks > deadlocks_max then
                    raise;
                end if;
            when sqlstate 'PNQ07' then  -- ours: what was done is undone
                exit when 'refused' = any (outcomes);
        end;
    end loop;
    return query
    select n.place, n.id, n.outcome
    from unnest(found_ids, outcomes) with ordinality as n(id, outcome, place)
    where n.outcome = 'refused' or not 'refused' = any (outcomes);
end
$$;
