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
-- The naive way is to insert each job and, if its key is taken, to do what follows before the next
-- is inserted. That is five times as slow. It also locks rows of other jobs between the entries of
-- the index: two batches deadlock, and so does a batch with the worker that ends the jobs. So all
-- jobs are inserted first. A job that was not inserted has a key that is taken: by a job of the
-- batch, or by an earlier one.
--
-- The jobs that were not inserted come in rounds: the first of each key, then the second of each
-- key, and so on. What becomes of each is as if all had been enqueued in their order. pass_keys
-- decides a round in one statement. insert_unique takes one by one what pass_keys leaves, and
-- rounds of few jobs.
--
-- If a job that held a key has ended since, the batch begins anew. The naive way is to insert only
-- the job that wants this key again; then its entry comes out of order.
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
    -- A round is a statement over the arrays of the whole batch. From here on that is cheaper than
    -- to take its jobs one by one.
    round_jobs_min constant integer := greatest(4, cardinality(job_ids) / 100);
    time_now constant timestamptz := {schema}.clock();
    own_only constant boolean := {schema}.own_only();
    -- A tenant may not choose ids. Its jobs get other ids than it says, and it is told them.
    chooses_ids constant boolean := has_column_privilege('{schema}.jobs', 'id', 'insert');
    unique_rules constant jsonb[] := rules::jsonb[];
    known_queues text[];
    slots text[];
    made_ids uuid[];
    found_ids uuid[];
    outcomes text[];
    rest bigint[];  -- places of jobs whose keys are taken, and that are not simply kept
    rounds bigint[];  -- of each place in `rest`
    is_by boolean;
    is_out_of_order boolean;
    places bigint[];
    held_org_ids uuid[];
    held_slots text[];
    held_keys text[];
    one record;
    few record;
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
        select array_agg(coalesce(u.rule->>'scope', u.job_type) order by u.place), bool_or(u.rule ? 'by')
        into slots, is_by
        from unnest(unique_rules, job_types) with ordinality as u(rule, job_type, place);
        if is_by then
            unique_keys := {schema}.unique_keys_of(
                array(
                    select case when u.rule ? 'by' then u.payload::jsonb end
                    from unnest(unique_rules, payloads) with ordinality as u(rule, payload, place)
                    order by u.place),
                array(select u.rule->'by' from unnest(unique_rules) with ordinality as u(rule, place) order by u.place),
                unique_keys);
        end if;
    else
        slots := job_types;
    end if;

    if cardinality(job_ids) = 1 or not chooses_ids then
        for one in
            select n.*
            from unnest(job_ids, org_ids, queue_names, job_types, payloads, priorities, times, delays, maxima, unique_keys,
                known_queues, enqueue_unique.headers, unique_rules, slots)
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
                one.unique_key, one.queue_name is null and one.known_queue is null, one.headers::jsonb, one.rule) as i;
        end loop;
        return;
    end if;

    loop
        tries := tries + 1;
        begin
            made_ids := {schema}.insert_keyed(
                time_now, job_ids, org_ids, queue_names, known_queues, job_types, payloads, priorities, times, delays, maxima,
                unique_keys, slots, enqueue_unique.headers, unique_rules);

            -- What was inserted, and what is simply kept. A job without a key is told as inserted,
            -- as by `insert into jobs`, even if a trigger of the user's has left it out.
            select array_agg(coalesce(n.own, n.kept) order by n.place),
                array_agg(case when n.own is not null then 'created' when n.kept is not null then 'kept' end order by n.place),
                array_agg(n.place) filter (where n.own is null and n.kept is null)
            into found_ids, outcomes, rest
            from (
                select n.*, case when o.id is not null or n.unique_key is null then n.id end as own,
                    case when o.id is null and n.unique_key is not null and coalesce(n.rule->>'on_conflict', 'keep') = 'keep' then
                        case when own_only then {schema}.key_holder(n.org_id, n.slot, n.unique_key)
                            else (
                                select j.id
                                from {schema}.jobs as j
                                where j.org_id = n.org_id and {schema}.key_scope(j) = n.slot and j.unique_key = n.unique_key
                                  and {schema}.holds_key(j) and not {schema}.gives_up_key(j, time_now)) end
                        end as kept
                from unnest(job_ids, org_ids, slots, unique_keys, unique_rules) with ordinality
                    as n(id, org_id, slot, unique_key, rule, place)
                left join unnest(made_ids) as o(id) on o.id = n.id
                offset 0
            ) as n;

            if rest is not null then
                -- If a job comes behind one of these and has the same key, it is decided after it.
                -- The jobs that hold the keys are to be locked, unless they are of this batch.
                select array_agg(n.place) filter (where n.outcome is distinct from 'created'),
                    array_agg(n.taken * 2 + (n.outcome is not null)::integer) filter (where n.outcome is distinct from 'created'),
                    coalesce(bool_or(n.outcome = 'created'), false),
                    array_agg(n.org_id) filter (where n.is_first), array_agg(n.slot) filter (where n.is_first),
                    array_agg(n.unique_key) filter (where n.is_first)
                into rest, rounds, is_out_of_order, held_org_ids, held_slots, held_keys
                from (
                    select n.*, n.taken = 1 and n.outcome is null and n.created = 0 as is_first
                    from (
                        select n.*, count(*) filter (where n.outcome is null) over so_far as taken,
                            count(*) filter (where n.outcome = 'created') over so_far as created
                        from unnest(org_ids, slots, unique_keys, outcomes) with ordinality
                            as n(org_id, slot, unique_key, outcome, place)
                        where n.unique_key is not null
                        window so_far as (
                            partition by n.org_id, n.slot collate "C", n.unique_key collate "C" order by n.place
                            rows unbounded preceding)
                    ) as n
                    where n.taken > 0
                ) as n;
                -- A job of the batch got its key, and one before it did not: the job that held the
                -- key has ended between the two inserts.
                if (is_out_of_order or (held_keys is not null and not {schema}.lock_keys(held_org_ids, held_slots, held_keys)))
                    and tries < tries_max
                then
                    raise exception 'a job that held a key has ended' using errcode = 'PNQ07';
                end if;
                for one in
                    select case when r.is_large then r.round end as round, array_agg(p.place) as places
                    from (
                        select r.round, array_agg(r.place) as places,
                            bool_and(count(*) >= round_jobs_min) over (order by r.round) as is_large
                        from unnest(rest, rounds) as r(place, round)
                        group by r.round
                    ) as r
                    cross join unnest(r.places) as p(place)
                    group by 1
                    order by 1 nulls last
                loop
                    places := one.places;
                    if one.round is not null then
                        select array_agg(p.place) as places, array_agg(coalesce(p.holder, p.new_id)) as ids,
                            array_agg(p.became) as became,
                            array_agg(p.new_id) filter (where p.became = 'superseded') as new_ids,
                            array_agg(p.new_id) filter (where p.waits_for is not null) as waiting_ids,
                            array_agg(p.waits_for) filter (where p.waits_for is not null) as holders
                        into told
                        from (
                            select array_agg(n.place) as places, array_agg(n.id) as ids, array_agg(n.org_id) as org_ids,
                                array_agg(n.slot) as slots, array_agg(n.unique_key) as unique_keys, array_agg(n.rule) as rules,
                                array_agg(n.payload::jsonb) as payloads,
                                array_agg(coalesce(n.scheduled_at, time_now + make_interval(secs => coalesce(n.delay, 0)))) as times,
                                array_agg(n.priority) as priorities
                            from unnest(job_ids, org_ids, slots, unique_keys, unique_rules, payloads, times, delays, priorities)
                                with ordinality
                                as n(id, org_id, slot, unique_key, rule, payload, scheduled_at, delay, priority, place)
                            join unnest(places) as r(place) using (place)
                        ) as n
                        cross join lateral {schema}.pass_keys(
                            n.places, n.ids, n.org_ids, n.slots, n.unique_keys, n.rules, n.payloads, n.times, n.priorities) as p;
                        if told.new_ids is not null then
                            perform {schema}.insert_keyed(
                                time_now, job_ids, org_ids, queue_names, known_queues, job_types, payloads, priorities, times,
                                delays, maxima, unique_keys, slots, enqueue_unique.headers, unique_rules, told.new_ids);
                            if told.waiting_ids is not null then
                                perform {schema}.run_after(told.waiting_ids, told.holders);
                            end if;
                        end if;
                        for few in select t.* from unnest(told.places, told.ids, told.became) as t(place, id, became) loop
                            found_ids[few.place] := few.id;
                            outcomes[few.place] := few.became;
                        end loop;
                        continue when cardinality(told.places) = cardinality(places);
                        places := array(select unnest(places) except select unnest(told.places));
                    end if;
                    -- A join, and no subscripts: to find a place in an array of texts, one walks
                    -- through it.
                    for few in
                        select n.id, n.org_id, coalesce(n.queue_name, n.known_queue, 'default') as queue_name,
                            n.queue_name is null and n.known_queue is null as queue_not_said, n.job_type,
                            n.payload::jsonb as payload, n.priority,
                            coalesce(n.scheduled_at, time_now + make_interval(secs => coalesce(n.delay, 0))) as scheduled_at,
                            n.max_attempts, n.unique_key, n.headers::jsonb as headers, n.rule, place
                        from unnest(job_ids, org_ids, queue_names, job_types, payloads, priorities, times, delays, maxima,
                            unique_keys, known_queues, enqueue_unique.headers, unique_rules, slots)
                            with ordinality
                            as n(id, org_id, queue_name, job_type, payload, priority, scheduled_at, delay, max_attempts, unique_key,
                                known_queue, headers, rule, slot, place)
                        join unnest(places) as r(place) using (place)
                        order by n.org_id, n.slot collate "C", n.unique_key collate "C", n.place
                    loop
                        select i.job_id, i.outcome into told
                        from {schema}.insert_unique(
                            few.id, few.org_id, few.queue_name, few.job_type, few.payload, few.priority, few.scheduled_at,
                            few.max_attempts, few.unique_key, few.queue_not_said, few.headers, few.rule, true) as i;
                        found_ids[few.place] := told.job_id;
                        outcomes[few.place] := told.outcome;
                    end loop;
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

-- insert_keyed: insert the jobs of a batch that have no key, or whose keys are free. It goes in the
-- order of keys: see enqueue_unique, which calls it.
--
-- In:     the arrays of enqueue_unique; `known_queues`: the handlers' queues, for jobs that say no
--         queue; `scopes`: what the keys are unique among. `only_ids`: insert only these; null:
--         all.
-- Out:    the ids of those that were inserted.
-- Locks:  entries of jobs_unique_key, in order of tenant, scope and key.
create or replace function {schema}.insert_keyed(
    time_now timestamptz, job_ids uuid[], org_ids uuid[], queue_names text[], known_queues text[], job_types text[],
    payloads text[], priorities smallint[], times timestamptz[], delays double precision[], maxima integer[],
    unique_keys text[], scopes text[], headers text[], rules jsonb[], only_ids uuid[] default null)
returns uuid[]
language plpgsql volatile
as $$
#variable_conflict use_column
declare
    made_ids uuid[];
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
            select n.*
            from unnest(job_ids, org_ids, queue_names, job_types, payloads, priorities, times, delays, maxima, unique_keys,
                known_queues, insert_keyed.headers, rules, scopes)
                with ordinality
                as n(id, org_id, queue_name, job_type, payload, priority, scheduled_at, delay, max_attempts, unique_key,
                    known_queue, headers, rule, slot, place)
            left join unnest(only_ids) as o(id) on o.id = n.id
            where only_ids is null or o.id is not null
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
    return made_ids;
end
$$;
