-- pass_key: a key is taken; decide what follows. insert_unique and requeue call it.
--
-- In:     the slot: tenant, scope (key_scope) and key. `on_conflict`:
--           keep       the job that holds the key stays, and no other is made
--           refuse     the same; the caller is refused
--           replace    if that job waits, it gets what `replaced` names of payload, scheduled_at
--                      and priority; it is due `longest_wait_seconds` after it was enqueued, at the
--                      latest. If it runs or has ended, it stays as it is
--           supersede  that job is cancelled, and gives up the key
--         `new_id`: the job that wants the key, for the record; null: not known.
-- Out:    `became`: kept, refused, replaced: `holder` is the job that has the key. Else the key is
--         free for this transaction: free, or superseded. Then `waits_for` is the job whose handler
--         has to end first; null: none.
-- Errors: insufficient_privilege: a producer may not replace or supersede a job that another role
--         enqueued; a tenant may not ask for another.
-- Locks:  the job that holds the key, if it is not simply kept. Until this commits, it neither
--         starts nor ends, and nobody else gets the key.
-- Index:  jobs_unique_key, jobs_pkey.
-- Rights: the owner's, because a role that enqueues may not write the jobs of others. An owner may
--         be above row security, so tenants are confined here (may_ask_for).
--
-- Whatever `on_conflict` says, a job whose period is over gives up its key. So does a job that was
-- cancelled and whose handler has not ended; then the new job waits for that end.
--
-- The naive way is to look up the holder and then to write it. If the holder ended or started
-- between the two, the wrong thing is done. Here it is locked, and read anew.
create or replace function {schema}.pass_key(
    org_id uuid, scope text, unique_key text, on_conflict text, replaced text[] default null, payload jsonb default null,
    scheduled_at timestamptz default null, priority smallint default null, longest_wait_seconds double precision default null,
    new_id uuid default null)
returns table (became text, holder uuid, waits_for uuid)
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
set jit = off
set enable_seqscan = off
set enable_bitmapscan = off
as $$
#variable_conflict use_column
declare
    time_now timestamptz;
    job {schema}.jobs;
    due timestamptz;
begin
    perform {schema}.may_ask_for(pass_key.org_id);
    loop
        select j.* into job
        from {schema}.jobs as j
        where j.org_id = pass_key.org_id and {schema}.key_scope(j) = pass_key.scope and j.unique_key = pass_key.unique_key
          and {schema}.holds_key(j);
        if not found then
            became := 'free';
            return next;
            return;
        end if;
        time_now := {schema}.clock();
        holder := job.id;
        if not {schema}.gives_up_key(job, time_now) and on_conflict in ('keep', 'refuse') then
            became := case on_conflict when 'keep' then 'kept' else 'refused' end;
            return next;
            return;
        end if;
        select j.* into job from {schema}.jobs as j where j.id = holder for no key update;
        -- Look again if it ended, started or passed its key on while this waited for its row.
        exit when found and {schema}.holds_key(job)
            and ({schema}.gives_up_key(job, time_now) or on_conflict in ('replace', 'supersede'));
    end loop;

    if {schema}.gives_up_key(job, time_now) then
        update {schema}.jobs as j set key_passed_on = true where j.id = holder;
        became := 'free';
        -- A job whose period is over may run on beside the new one: its key was unique for its
        -- period.
        waits_for := case when job.status = 'cancelled' then case when job.is_held then job.id else job.waits_for end end;
    elsif not {schema}.may_take_key(job) then
        raise exception 'the key % is held by job %, which another role enqueued', quote_literal(pass_key.unique_key), holder
            using errcode = 'insufficient_privilege', hint = 'Keep it (on_conflict keep), or enqueue as that role.';
    elsif on_conflict = 'replace' then
        became := 'kept';
        if job.status = 'pending' then
            became := 'replaced';
            due := case when 'scheduled_at' = any (replaced) then {schema}.replaced_time(
                pass_key.scheduled_at, job.created_at, make_interval(secs => pass_key.longest_wait_seconds), time_now) end;
            update {schema}.jobs as j
            set payload = case when 'payload' = any (replaced) then pass_key.payload else j.payload end,
                priority = case when 'priority' = any (replaced) then pass_key.priority else j.priority end,
                scheduled_at = case when j.waits_for is null then coalesce(due, j.scheduled_at) else j.scheduled_at end,
                due_after_wait = case when j.waits_for is not null then coalesce(due, j.due_after_wait) end
            where j.id = holder;
            if pg_relation_size('{schema}.followers') > 0 then
                perform {schema}.tell_followers('edited', array[holder]);
            end if;
        end if;
    elsif job.status = 'completed' then  -- within its period
        update {schema}.jobs as j set key_passed_on = true where j.id = holder;
        became := 'free';
    else
        update {schema}.jobs as j
        set status = 'cancelled', error_message = concat('superseded', ' by ' || new_id), key_passed_on = true
        where j.id = holder;
        became := 'superseded';
        waits_for := case when job.is_held then job.id else job.waits_for end;
    end if;
    return next;
end
$$;
revoke all on function {schema}.pass_key(uuid, text, text, text, text[], jsonb, timestamptz, smallint, double precision, uuid)
    from public;

-- pass_keys: the same for many keys that are taken, for enqueue_unique. It decides the plain cases,
-- in one statement or two. They are most of what comes. pass_key decides the keys that this tells
-- nothing of.
--
-- In:     arrays of one length: places, which are told again; the jobs that want the keys; the
--         keys' slots; what the jobs' `unique` says (enqueue_unique.sql); and their payloads, times
--         and priorities. Two jobs may want the same key only if they are to be kept or refused.
-- Out:    `became`: kept, refused, replaced: `holder` has the key. superseded: the key is free for
--         this transaction; `waits_for` as of pass_key. No row: pass_key is to be asked. Then no
--         job has the key; or the job that has it gives it up, has ended, or may not be written by
--         the asking role.
-- Locks:  the jobs that hold keys, as lock_keys has locked them already.
-- Index:  jobs_unique_key.
-- Rights: the owner's, as of pass_key.
--
-- It decides as pass_key does: tests/ledger/test_unique_bulks.py compares the two.
create or replace function {schema}.pass_keys(
    places bigint[], new_ids uuid[], org_ids uuid[], scopes text[], unique_keys text[], rules jsonb[], payloads jsonb[],
    times timestamptz[], priorities smallint[])
returns table (place bigint, new_id uuid, became text, holder uuid, waits_for uuid)
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_generic_plan
set jit = off
set enable_seqscan = off
set enable_bitmapscan = off
set enable_hashjoin = off
set enable_mergejoin = off
as $$
#variable_conflict use_column
declare
    time_now constant timestamptz := {schema}.clock();
    asking constant text := {schema}.asking_role();
    takes_all constant boolean := {schema}.may_take_all(asking);
    written integer;
begin
    perform {schema}.may_ask_for(k.org_id) from (select distinct u.org_id from unnest(org_ids) as u(org_id)) as k;
    return query
    with wanted as materialized (
        select w.place, w.new_id, w.org_id, w.scope, w.unique_key, coalesce(w.rule->>'on_conflict', 'keep') as on_conflict,
            coalesce(w.rule->'replace' ? 'payload', true) as has_payload,
            coalesce(w.rule->'replace' ? 'priority', true) as has_priority,
            coalesce(w.rule->'replace' ? 'scheduled_at', true) as has_time,
            make_interval(secs => (w.rule->>'longest_wait_seconds')::double precision) as longest_wait,
            w.payload, w.scheduled_at, w.priority
        from unnest(places, new_ids, org_ids, scopes, unique_keys, rules, payloads, times, priorities)
            as w(place, new_id, org_id, scope, unique_key, rule, payload, scheduled_at, priority)
    ), superseded as (
        update {schema}.jobs as j
        set status = 'cancelled', error_message = 'superseded by ' || w.new_id, key_passed_on = true
        from wanted as w
        where w.on_conflict = 'supersede' and j.org_id = w.org_id and {schema}.key_scope(j) = w.scope
          and j.unique_key = w.unique_key and {schema}.holds_key(j) and not {schema}.gives_up_key(j, time_now)
          and j.status in ('pending', 'running') and (takes_all or j.enqueued_by = asking)
        returning w.place, w.new_id, case when j.is_held then j.id else j.waits_for end as waits_for
    ), replaced as (
        update {schema}.jobs as j
        set payload = case when w.has_payload then w.payload else j.payload end,
            priority = case when w.has_priority then w.priority else j.priority end,
            scheduled_at = case when w.has_time and j.waits_for is null
                then {schema}.replaced_time(w.scheduled_at, j.created_at, w.longest_wait, time_now) else j.scheduled_at end,
            due_after_wait = case when w.has_time and j.waits_for is not null
                then {schema}.replaced_time(w.scheduled_at, j.created_at, w.longest_wait, time_now) else j.due_after_wait end
        from wanted as w
        where w.on_conflict = 'replace' and j.org_id = w.org_id and {schema}.key_scope(j) = w.scope
          and j.unique_key = w.unique_key and {schema}.holds_key(j) and not {schema}.gives_up_key(j, time_now)
          and j.status = 'pending' and (takes_all or j.enqueued_by = asking)
        returning w.place, w.new_id, j.id
    )
    select s.place, s.new_id, 'superseded', null::uuid, s.waits_for from superseded as s
    union all
    select r.place, r.new_id, 'replaced', r.id, null from replaced as r;
    get diagnostics written = row_count;
    if pg_relation_size('{schema}.followers') > 0 then
        perform {schema}.tell_followers('edited', array(
            select j.id
            from unnest(org_ids, scopes, unique_keys, rules) as w(org_id, scope, unique_key, rule)
            join {schema}.jobs as j
                on j.org_id = w.org_id and {schema}.key_scope(j) = w.scope and j.unique_key = w.unique_key
                and {schema}.holds_key(j) and not {schema}.gives_up_key(j, time_now)
            where w.rule->>'on_conflict' = 'replace' and j.status = 'pending' and (takes_all or j.enqueued_by = asking)));
    end if;
    if written = cardinality(places) then
        return;
    end if;
    return query
    select w.place, w.new_id, case w.on_conflict when 'refuse' then 'refused' else 'kept' end, j.id, null::uuid
    from (
        select u.*, coalesce(u.rule->>'on_conflict', 'keep') as on_conflict
        from unnest(places, new_ids, org_ids, scopes, unique_keys, rules) as u(place, new_id, org_id, scope, unique_key, rule)
    ) as w
    join {schema}.jobs as j
        on j.org_id = w.org_id and {schema}.key_scope(j) = w.scope and j.unique_key = w.unique_key
        and {schema}.holds_key(j) and not {schema}.gives_up_key(j, time_now)
    where w.on_conflict in ('keep', 'refuse')
       or (w.on_conflict = 'replace' and j.status <> 'pending' and (takes_all or j.enqueued_by = asking));
end
$$;
revoke all on function {schema}.pass_keys(
    bigint[], uuid[], uuid[], text[], text[], jsonb[], jsonb[], timestamptz[], smallint[])
    from public;

-- replaced_time: when a job is due whose time another job replaces. It is due as the other says;
-- with a longest wait, so long after its enqueue at the latest, but not before now. Null: there is
-- no longest wait. This case is apart, because greatest and least pass over a null.
create or replace function {schema}.replaced_time(
    scheduled_at timestamptz, created_at timestamptz, longest_wait interval, time_now timestamptz)
returns timestamptz
language sql immutable
as $$
    select case when longest_wait is null then scheduled_at else least(scheduled_at, greatest(created_at + longest_wait, time_now)) end
$$;

-- asking_role: the role that asked for this statement, even where the statement runs with the
-- owner's rights: the role that was set, else the one that logged in.
create or replace function {schema}.asking_role() returns text
language sql stable
as $$ select case current_setting('role') when 'none' then session_user::text else current_setting('role') end $$;

-- may_ask_for: refuse a tenant that asks for another tenant, where a statement runs with the
-- owner's rights. is_confined (migration 0013) says who is a tenant.
create or replace function {schema}.may_ask_for(org_id uuid) returns void
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
begin
    if (coalesce(current_setting('pgnotifyq.org_id', true), '') <> ''
            or {schema}.is_sealed({schema}.asking_role()) or {schema}.is_sealed(session_user))
        and org_id is distinct from {schema}.current_org()
    then
        raise exception 'tenant % is not the one of this transaction', org_id using errcode = 'insufficient_privilege';
    end if;
end
$$;

-- may_take_key: whether the role that asked for this statement may write the job that has the key.
-- A producer may write only what it enqueued.
create or replace function {schema}.may_take_key(job {schema}.jobs) returns boolean
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
declare
    asking constant text := {schema}.asking_role();
begin
    return (job).enqueued_by = asking or {schema}.may_take_all(asking);
end
$$;

-- may_take_all: whether a role may write any job that has a key it wants. A tenant may: it sees
-- only its own jobs.
create or replace function {schema}.may_take_all(role_name text) returns boolean
language sql stable
as $$
    select has_table_privilege(role_name, '{schema}.worker_heartbeats', 'select')
        or not has_column_privilege(role_name, '{schema}.jobs', 'id', 'insert')
$$;

-- lock_keys: lock the jobs that hold some keys, before pass_key takes them one by one. What the
-- role may not take is not locked.
--
-- Out:    whether each of the keys is held by a job that was locked. If not, a job has ended, or
--         has passed its key on, while this waited for another: undo the locks, and begin anew.
-- Locks:  first the jobs that a worker holds, then those that wait; each in id order. So two
--         sessions that take the same keys do not deadlock. Nor does a session with the worker that
--         ends those jobs: the worker locks the jobs that it ends, in id order, and then the jobs
--         that wait for them (start_successors).
-- Rights: the owner's, as of pass_key.
create or replace function {schema}.lock_keys(org_ids uuid[], scopes text[], unique_keys text[]) returns boolean
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
set jit = off
set enable_seqscan = off
set enable_bitmapscan = off
as $$
declare
    asking constant text := {schema}.asking_role();
    takes_all constant boolean := {schema}.may_take_all(asking);
    ids uuid[];
    locked_ids uuid[];
    is_held_by_each boolean;
begin
    perform {schema}.may_ask_for(k.org_id) from (select distinct u.org_id from unnest(org_ids) as u(org_id)) as k;
    for look in 1 .. 2 loop
        select array_agg(j.id order by j.is_held desc, j.id) filter (where takes_all or j.enqueued_by = asking),
            bool_and(j.id is not null)
        into ids, is_held_by_each
        from unnest(org_ids, scopes, unique_keys) as k(org_id, scope, unique_key)
        left join lateral (
            select j.id, j.is_held, j.enqueued_by
            from {schema}.jobs as j
            where j.org_id = k.org_id and {schema}.key_scope(j) = k.scope and j.unique_key = k.unique_key and {schema}.holds_key(j)
        ) as j on true;
        exit when look = 2 or not is_held_by_each;
        perform from {schema}.jobs as j where j.id = any (ids) order by j.is_held desc, j.id for no key update;
        locked_ids := ids;
    end loop;
    return is_held_by_each and coalesce(ids <@ locked_ids, true);
end
$$;
revoke all on function {schema}.lock_keys(uuid[], text[], text[]) from public;

-- run_after: let jobs that were just inserted wait for the end of those that had their keys.
-- start_successors lets them go.
--
-- In:     arrays of one length: the jobs, and those that had their keys.
-- Rights: the owner's, as of pass_key. It takes jobs of one key only.
drop function if exists {schema}.run_after(uuid, uuid);
create or replace function {schema}.run_after(job_ids uuid[], holders uuid[]) returns void
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
set jit = off
set enable_seqscan = off
set enable_bitmapscan = off
set enable_hashjoin = off
set enable_mergejoin = off
as $$
declare
    asking constant text := {schema}.asking_role();
    takes_all constant boolean := {schema}.may_take_all(asking);
begin
    perform {schema}.may_ask_for(k.org_id) from (
        select distinct j.org_id from unnest(job_ids) as u(id) join {schema}.jobs as j on j.id = u.id
    ) as k;
    update {schema}.jobs as j
    set waits_for = h.id, due_after_wait = j.scheduled_at, scheduled_at = 'infinity'
    from unnest(job_ids, holders) as w(job_id, holder)
    join {schema}.jobs as h on h.id = w.holder
    where j.id = w.job_id and j.status = 'pending' and j.waits_for is null and (takes_all or j.enqueued_by = asking)
      and h.is_held and h.key_passed_on
      and h.org_id = j.org_id and {schema}.key_scope(h) = {schema}.key_scope(j) and h.unique_key = j.unique_key;
end
$$;
revoke all on function {schema}.run_after(uuid[], uuid[]) from public;
