-- Tenants by token, and roles of the least rights.
--
-- Whoever sends SQL of their own can set any setting. So a setting confines only against mistakes.
-- A session of a login that is a tenant's is confined against intent: it has nothing to reset to,
-- and its tenant is a token that only a worker can make. The token holds for one tenant in one
-- transaction of one session: it is a keyed digest (HMAC-SHA256) of the tenant, the backend, the
-- time of the transaction, and the transaction's id.
--
-- Who is who is a matter of rights, not of names:
--
--   sees all     may read worker_heartbeats: owner, worker, admin, observer
--   a tenant     may ask unsealed(), and does not see all
--   a producer   may choose the ids of jobs, and does not see all: it sees what it enqueued
--
-- Nothing here rewrites or reads the table of jobs.

-- The keys of the tokens. Only the owner's functions read them.
create table {schema}.tenant_keys (
    key bytea not null,
    -- The key, padded to 64 bytes, xor 0x36 and xor 0x5c: HMAC, RFC 2104.
    inner_pad bytea not null,
    outer_pad bytea not null,
    made_at timestamptz not null default clock_timestamp(),

    constraint tenant_keys_pkey primary key (key)
);

-- The login that `migrate --tenant-login` made. Only the owner's functions read it.
create table {schema}.tenant_logins (
    role_name text not null,
    password text not null,
    made_at timestamptz not null default clock_timestamp(),

    constraint tenant_logins_pkey primary key (role_name)
);

-- Which role is what. `migrate` gives each of them its rights, every time (functions/roles).
create table {schema}.roles (
    kind text not null,
    role_name text not null,

    constraint roles_pkey primary key (kind, role_name),
    constraint kind_is_known check (kind in ('producer', 'worker', 'admin', 'observer', 'tenant'))
);

-- Names of roles are no secret: pg_roles shows them.
grant select on {schema}.roles to public;

-- Who enqueued a job: the role. Null: before this version.
alter table {schema}.jobs add column enqueued_by text;
alter table {schema}.jobs alter column enqueued_by set default current_user;
alter table {schema}.dead_letter_jobs add column enqueued_by text;

-- new_tenant_key: make a key. Keys that are older are still good.
create or replace function {schema}.new_tenant_key() returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
    key constant bytea := sha256(uuid_send(gen_random_uuid()) || uuid_send(gen_random_uuid()) || uuid_send(gen_random_uuid()));
    inner_pad bytea := decode(repeat('36', 64), 'hex');
    outer_pad bytea := decode(repeat('5c', 64), 'hex');
begin
    for place in 0 .. length(key) - 1 loop
        inner_pad := set_byte(inner_pad, place, get_byte(inner_pad, place) # get_byte(key, place));
        outer_pad := set_byte(outer_pad, place, get_byte(outer_pad, place) # get_byte(key, place));
    end loop;
    insert into {schema}.tenant_keys (key, inner_pad, outer_pad) values (key, inner_pad, outer_pad);
end
$$;
select {schema}.new_tenant_key();

-- unsealed: the tenant of a token; null: the token is not of this transaction, or not of ours.
--
-- In:     36 characters, the tenant, and 64, the digest in hexadecimal.
-- Rights: the owner's, to read the keys. Tenants may ask it. What they learn is their own tenant.
--
-- The two digests are hashed once more before they are compared. So the time that the comparison
-- takes says nothing of the digest that is wanted.
create or replace function {schema}.unsealed(token text) returns uuid
language plpgsql stable parallel restricted security definer
set search_path = pg_catalog, pg_temp
as $$
declare
    said constant bytea := convert_to(left(token, 36), 'UTF8') || int4send(pg_backend_pid()) || timestamptz_send(now())
        || xid8send(pg_current_xact_id_if_assigned());
begin
    perform from {schema}.tenant_keys as k
    where sha256(convert_to(substr(token, 37), 'UTF8'))
        = sha256(convert_to(encode(sha256(k.outer_pad || sha256(k.inner_pad || said)), 'hex'), 'UTF8'));
    -- Not before: what is no uuid is no error, and has no rows.
    return case when found then left(token, 36)::uuid end;
end
$$;
revoke all on function {schema}.unsealed(text) from public;

-- is_sealed: whether a role is a tenant's, so that only a token says which tenant it is.
create or replace function {schema}.is_sealed(connected_role text) returns boolean
language sql stable parallel safe
return not has_table_privilege(connected_role::name, '{schema}.worker_heartbeats'::regclass, 'select')
    and has_function_privilege(connected_role::name, '{schema}.unsealed(text)'::regprocedure, 'execute');

-- current_org: the tenant of this transaction, or null. Policies ask it once a statement:
-- `(select current_org())`.
--
-- In a session of a tenant's login, a token says it. Elsewhere the setting does, and narrows what
-- the session sees anyway.
--
-- A table may be protected by two queues of one database. Then it is asked by tenants of the other
-- queue, who have nothing in this schema, not even to look names up. This schema's tokens are not
-- theirs, so the setting says it, and the other queue's policy confines them by its token. If only
-- the role that was taken on has nothing here, there is no tenant, and no rows.
create or replace function {schema}.current_org() returns uuid
language plpgsql stable parallel restricted
set search_path = pg_catalog, pg_temp
as $$
begin
    if not has_schema_privilege(current_user, {schema_text}, 'usage') then
        return case when not has_schema_privilege(session_user, {schema_text}, 'usage')
            then nullif(current_setting('pgnotifyq.org_id', true), '')::uuid end;
    end if;
    if {schema}.is_sealed(session_user) then
        return {schema}.unsealed(current_setting('pgnotifyq.token', true));
    end if;
    return nullif(current_setting('pgnotifyq.org_id', true), '')::uuid;
end
$$;

-- is_confined: whether this session sees one tenant only. It is a tenant's, has taken on a role
-- that is, or has chosen a tenant.
create or replace function {schema}.is_confined() returns boolean
language sql stable parallel safe
return coalesce(current_setting('pgnotifyq.org_id', true), '') <> ''
    or {schema}.is_sealed(current_user) or {schema}.is_sealed(session_user);

-- own_only: whether the role is a producer, which sees only the jobs that it enqueued.
create or replace function {schema}.own_only() returns boolean
language sql stable parallel safe
return not has_table_privilege('{schema}.worker_heartbeats'::regclass, 'select')
    and has_column_privilege('{schema}.jobs'::regclass, 'id', 'insert');

-- is_as_enqueued: whether a row is one that enqueue would make (functions/enqueue/enqueue.sql).
--
-- A client chooses ids, in version 7 order: so the time in them is about now.
create or replace function {schema}.is_as_enqueued(job {schema}.jobs) returns boolean
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
begin
    return job.status = 'pending' and job.attempts = 0 and not job.awaited and job.enqueued_by = current_user
        and num_nonnulls(job.locked_by, job.current_execution_id, job.lease_expires_at, job.started_at, job.completed_at,
            job.error_message, job.result, job.progress, job.progress_message, job.suspicion, job.suspected_with) = 0
        and job.job_type ~ '^[A-Za-z0-9_][A-Za-z0-9_.:-]{{0,126}}$'
        and job.queue_name ~ '^[A-Za-z0-9_][A-Za-z0-9_.:-]{{0,62}}$'
        and (not job.queue_not_said or job.queue_name = 'default')
        and coalesce(job.max_attempts, 1) between 1 and 1000
        and coalesce(length(job.unique_key), 0) <= 2000
        and isfinite(job.scheduled_at) and extract(year from job.scheduled_at at time zone 'UTC') between 2 and 9998
        and (octet_length(job.payload::text) <= 1048576 or {schema}.compact_bytes(job.payload) <= 1048576)
        and job.created_at between clock_timestamp() - interval '1 day' and clock_timestamp() + interval '1 day'
        and substr(job.id::text, 15, 1) = '7'
        and abs(('x' || left(replace(job.id::text, '-', ''), 12))::bit(48)::bigint
            - extract(epoch from clock_timestamp()) * 1000) < 86400000;
end
$$;

-- is_own: whether a producer has enqueued a job, alive or dead.
create or replace function {schema}.is_own(job_id uuid) returns boolean
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
begin
    return exists (select from {schema}.jobs as j where j.id = is_own.job_id)
        or exists (select from {schema}.dead_letter_jobs as d where d.id = is_own.job_id);
end
$$;

-- The policies that each statement about jobs pays for say what is_confined and own_only say,
-- written out. If a policy calls these, the planner reads, rewrites and inlines the function's text
-- for each statement that is not prepared. That took 80 of the 250 microseconds of an insert. A
-- subselect with no function of ours in it is planned in some microseconds. It is asked once a
-- statement.
do $do$
declare
    each text;
    is_free constant text :=
        $$(select coalesce(current_setting('pgnotifyq.org_id', true), '') = ''
            and (has_table_privilege('{schema}.worker_heartbeats'::regclass, 'select')
                or not has_function_privilege('{schema}.unsealed(text)'::regprocedure, 'execute'))
            and (has_table_privilege(session_user, '{schema}.worker_heartbeats'::regclass, 'select')
                or not has_function_privilege(session_user, '{schema}.unsealed(text)'::regprocedure, 'execute')))
            or org_id = (select {schema}.current_org())$$;
begin
    foreach each in array array['jobs', 'job_executions', 'dead_letter_jobs', 'job_troubles'] loop
        execute format('alter policy one_tenant on {schema}.%I using (%s) with check (%2$s)', each, is_free);
    end loop;
end
$do$;

-- These come on top of one_tenant, and bind those who do not see all. Each statement pays for each
-- that is for it, some microseconds. So there is one for each kind of statement, and none to delete
-- by: who does not see all has no right to. They do not bind who is neither producer nor tenant.
create policy own_jobs on {schema}.jobs as restrictive for select
    using ((select has_table_privilege('{schema}.worker_heartbeats'::regclass, 'select')
            or not has_column_privilege('{schema}.jobs'::regclass, 'id', 'insert'))
        or enqueued_by = current_user);
create policy as_enqueued on {schema}.jobs as restrictive for insert
    with check ((select has_table_privilege('{schema}.worker_heartbeats'::regclass, 'select')
            or not (has_column_privilege('{schema}.jobs'::regclass, 'id', 'insert')
                or has_function_privilege('{schema}.unsealed(text)'::regprocedure, 'execute')))
        or {schema}.is_as_enqueued(jobs));
-- They cancel jobs, and wait for them. A job that has ended changes no more.
create policy as_cancelled on {schema}.jobs as restrictive for update
    using ((select has_table_privilege('{schema}.worker_heartbeats'::regclass, 'select')
            or not (has_column_privilege('{schema}.jobs'::regclass, 'id', 'insert')
                or has_function_privilege('{schema}.unsealed(text)'::regprocedure, 'execute')))
        or ((completed_at is null or is_held) and (enqueued_by = current_user or not {schema}.own_only())))
    with check ((select has_table_privilege('{schema}.worker_heartbeats'::regclass, 'select')
            or not (has_column_privilege('{schema}.jobs'::regclass, 'id', 'insert')
                or has_function_privilege('{schema}.unsealed(text)'::regprocedure, 'execute')))
        or (status in ('pending', 'running', 'cancelled') and coalesce(length(error_message), 0) <= 10000));
create policy own_jobs on {schema}.dead_letter_jobs as restrictive for select
    using (not (select {schema}.own_only()) or enqueued_by = current_user);
create policy own_jobs on {schema}.job_executions as restrictive for select
    using (not (select {schema}.own_only()) or {schema}.is_own(job_id));

-- The triggers that wake read who sleeps, with the owner's rights. So nobody who enqueues needs to
-- see the workers. Otherwise as before (0008).
create or replace function {schema}.wake_after_insert() returns trigger
language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $$
begin
    if current_setting('transaction_isolation') = 'read committed'
       and not exists (select from {schema}.sleepers)
    then
        return null;
    end if;
    perform {schema}.wake(q.queue_name, q.due_at, q.jobs, case when q.jobs = 1 then q.job end, q.job_type)
    from (
        select i.queue_name, i.job_type, min(i.scheduled_at) as due_at, count(*) as jobs, min(i.id::text) as job
        from inserted as i
        where i.status = 'pending'
        group by i.queue_name, i.job_type
    ) as q;
    return null;
end
$$;
revoke all on function {schema}.wake_after_insert() from public;

create or replace function {schema}.wake_after_reschedule() returns trigger
language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $$
begin
    perform {schema}.wake(new.queue_name, new.scheduled_at, 1, null, new.job_type);
    return null;
end
$$;
revoke all on function {schema}.wake_after_reschedule() from public;

-- check_fence: a transaction cannot be prepared, with comments in between either. Otherwise as
-- before (0010).
create or replace function {schema}.check_fence() returns trigger
language plpgsql security definer
set search_path = pg_catalog, pg_temp
set jit = off
set enable_seqscan = off
set enable_bitmapscan = off
as $$
declare
    held text;
    tenant text := current_setting('pgnotifyq.org_id', true);
begin
    -- If the row is gone, the end of the block has asked already, and has locked the job's row.
    delete from {schema}.fences as f where f.xact = new.xact;
    if not found then
        return null;
    end if;
    if current_query() ~* 'prepare(\s|--[^\n]*\n|/\*.*\*/)+transaction' then
        -- A prepared transaction would keep the job's row locked until a person remembers it.
        raise exception 'the transaction of job % cannot be prepared: it commits with its execution, or not at all', new.job_id
            using errcode = 'PNQ03', detail = 'prepared';
    end if;
    perform set_config('pgnotifyq.org_id', '', true);
    held := {schema}.still_holds(new.job_id, new.execution_id);
    perform set_config('pgnotifyq.org_id', coalesce(tenant, ''), true);
    if held <> 'held' then
        raise exception 'execution % no longer owns job %; the transaction was rolled back', new.execution_id, new.job_id
            using errcode = 'PNQ03', detail = held;
    end if;
    return null;
end
$$;

-- A job's history is its tenant's: another tenant's job that had the same id keeps its own.
-- Otherwise as before (0009).
create or replace function {schema}.history_goes_with_its_job() returns trigger
language plpgsql
set jit = off
set enable_seqscan = off
set enable_nestloop = on
set enable_hashjoin = off
set enable_mergejoin = off
as $$
declare
    ids uuid[];
    orgs uuid[];
begin
    -- In a burial (functions/end/move_to_letters.sql) each job has a letter, and the history
    -- belongs to that.
    if current_setting('pgnotifyq.buries', true) = 'yes' then
        return null;
    end if;
    select array_agg(g.id), array_agg(distinct g.org_id) into ids, orgs
    from gone as g
    where not exists (select from {schema}.dead_letter_jobs as d where d.id = g.id and d.org_id = g.org_id);
    -- A role that may delete jobs and no history leaves the history. That is better than to keep
    -- the jobs.
    if ids is not null and has_table_privilege('{schema}.job_executions', 'select, delete') then
        delete from {schema}.job_executions as e where e.job_id = any (ids) and e.org_id = any (orgs);
    end if;
    return null;
end
$$;

-- note_cancel: as before (0012), by notify(), which a full queue of notifications does not stop. It
-- has the owner's rights: whoever may cancel a job need not read its hooks, nor enqueue them.
create or replace function {schema}.note_cancel() returns trigger
language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $$
begin
    new.completed_at := coalesce(new.completed_at, {schema}.clock());
    if new.current_execution_id is not null then
        perform {schema}.notify(
            {schema}.worker_channel(new.locked_by), 'cancel ' || new.id || ' ' || new.current_execution_id);
    elsif new.awaited then
        perform {schema}.notify({schema_text} || '_finished', new.id::text);
    end if;
    if old.status = 'pending' and pg_relation_size('{schema}.hooks') > 0 then
        perform {schema}.fire_hook(new);
    end if;
    return new;
end
$$;
revoke all on function {schema}.note_cancel() from public;
