-- pass_key: a key is taken; decide what follows. enqueue_unique and requeue ask it.
--
-- In:     the slot: tenant, scope (key_scope) and key. `on_conflict`:
--           keep       the job that holds the key stays, and no other is made
--           refuse     the same; the caller is refused
--           replace    if it waits, it gets what `replaced` names of payload, scheduled_at and
--                      priority; it is due `longest_wait_seconds` after it was enqueued, at the
--                      latest. If it runs or has ended, it stays as it is
--           supersede  it is cancelled, and gives up the key
--         `new_id`: the job that wants the key, for the record; null: not known.
-- Out:    `became`: kept, refused, replaced: `holder` is the job that has the key. Else the key is
--         free for this transaction: free, or superseded. Then `waits_for` is the job whose handler
--         has to end first; null: none.
-- Errors: a producer may not replace or supersede a job that another role enqueued
--         (insufficient_privilege).
-- Locks:  the job that holds the key, if it is not simply kept. Until this commits, it neither
--         starts nor ends, and nobody else gets the key.
-- Index:  jobs_unique_key, jobs_pkey.
-- Rights: the owner's, as who enqueues may write no jobs. Row security confines tenants here, too.
--
-- Whatever is on conflict: a job whose period is over gives up its key; so does one that was
-- cancelled and whose handler has not ended, and then the new one waits for that end.
--
-- Naively the holder is looked up and then written. If it ended or started between the two, the
-- wrong thing is done. Here it is locked, and read anew.
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
        -- It ended, started or passed its key on while this waited for its row.
        exit when found and {schema}.holds_key(job)
            and ({schema}.gives_up_key(job, time_now) or on_conflict in ('replace', 'supersede'));
    end loop;

    if {schema}.gives_up_key(job, time_now) then
        update {schema}.jobs as j set key_passed_on = true where j.id = holder;
        became := 'free';
        -- A job whose period is over may run on beside the new one: it is unique for its period.
        waits_for := case when job.status = 'cancelled' then case when job.is_held then job.id else job.waits_for end end;
    elsif not {schema}.may_take_key(job) then
        raise exception 'the key % is held by job %, which another role enqueued', quote_literal(pass_key.unique_key), holder
            using errcode = 'insufficient_privilege', hint = 'Keep it (on_conflict keep), or enqueue as that role.';
    elsif on_conflict = 'replace' then
        became := 'kept';
        if job.status = 'pending' then
            became := 'replaced';
            due := case when 'scheduled_at' = any (replaced) then least(
                pass_key.scheduled_at,
                greatest(job.created_at + make_interval(secs => pass_key.longest_wait_seconds), time_now)) end;
            update {schema}.jobs as j
            set payload = case when 'payload' = any (replaced) then pass_key.payload else j.payload end,
                priority = case when 'priority' = any (replaced) then pass_key.priority else j.priority end,
                scheduled_at = case when j.waits_for is null then coalesce(due, j.scheduled_at) else j.scheduled_at end,
                due_after_wait = case when j.waits_for is not null then coalesce(due, j.due_after_wait) end
            where j.id = holder;
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

-- may_take_key: whether the role that asked for this statement may write the job that has its key.
-- A producer may write only what it enqueued. Asked with the owner's rights, so the role is the one
-- that was set, or logged in.
create or replace function {schema}.may_take_key(job {schema}.jobs) returns boolean
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
declare
    asking constant text := case current_setting('role') when 'none' then session_user::text else current_setting('role') end;
begin
    return (job).enqueued_by = asking
        or has_table_privilege(asking, '{schema}.worker_heartbeats', 'select')
        or not has_column_privilege(asking, '{schema}.jobs', 'id', 'insert');
end
$$;

-- lock_keys: lock the jobs that hold some keys, in id order, before pass_key takes them one by one.
-- Two who take the same keys do not deadlock, nor does one with the worker that ends those jobs.
-- What the role may not take is not locked.
--
-- Out:    how many of the keys no job holds.
-- Rights: the owner's, as of pass_key.
create or replace function {schema}.lock_keys(org_ids uuid[], scopes text[], unique_keys text[]) returns integer
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
set jit = off
set enable_seqscan = off
set enable_bitmapscan = off
as $$
declare
    ids uuid[];
    unheld integer;
begin
    for tries in 1 .. 2 loop
        select array_agg(j.id) filter (where j.may_take), count(*) filter (where j.id is null)
        into ids, unheld
        from unnest(org_ids, scopes, unique_keys) as k(org_id, scope, unique_key)
        left join lateral (
            select j.id, {schema}.may_take_key(j) as may_take
            from {schema}.jobs as j
            where j.org_id = k.org_id and {schema}.key_scope(j) = k.scope and j.unique_key = k.unique_key and {schema}.holds_key(j)
        ) as j on true;
        exit when tries = 2 or unheld > 0;
        -- Then they are looked up again: one may have ended while another was waited for.
        perform from {schema}.jobs as j where j.id = any (ids) order by j.id for no key update;
    end loop;
    return unheld;
end
$$;
revoke all on function {schema}.lock_keys(uuid[], text[], text[]) from public;

-- run_after: let a job that was just inserted wait until another has ended, which had its key.
-- start_successors lets it go.
--
-- Rights: the owner's, as of pass_key. It takes jobs of one key only.
create or replace function {schema}.run_after(job_id uuid, holder uuid) returns void
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
set jit = off
set enable_seqscan = off
set enable_bitmapscan = off
as $$
begin
    update {schema}.jobs as j
    set waits_for = holder, due_after_wait = j.scheduled_at, scheduled_at = 'infinity'
    from {schema}.jobs as h
    where j.id = run_after.job_id and j.status = 'pending' and j.waits_for is null and {schema}.may_take_key(j)
      and h.id = run_after.holder and h.is_held and h.key_passed_on
      and h.org_id = j.org_id and {schema}.key_scope(h) = {schema}.key_scope(j) and h.unique_key = j.unique_key;
end
$$;
revoke all on function {schema}.run_after(uuid, uuid) from public;
