-- Watching: who follows jobs, and what handlers log. Nothing here rewrites or reads the table of
-- jobs, and what the release before says and asks goes on.

-- Who follows a job, or what happens to jobs. Nothing is told while this is empty
-- (functions/look/tell.sql). Unlogged: after a crash of the server nobody listens any more.
create unlogged table {schema}.followers (
    id uuid not null,
    -- Only what is this tenant's. Null: whatever the tenant.
    org_id uuid,
    -- Only this job. Null: the jobs of a queue, or all.
    job_id uuid,
    queue_name text,
    -- Who follows says so again before this time.
    until timestamptz not null,

    constraint followers_pkey primary key (id)
);

-- What the handler of an attempt has logged by `ctx.log`: its first lines and its last. Each part
-- is an array of JSON, in ASCII, whose elements are lines: seconds since 1970, level, text. It is
-- text so that a server of whatever encoding keeps whatever was logged.
create table {schema}.job_logs (
    org_id uuid not null,
    job_id uuid not null,
    execution_id uuid not null,
    attempt integer not null,
    head text,
    tail text,
    -- How many lines between the two are gone.
    lines_left_out bigint not null default 0,
    kept_at timestamptz not null default {schema}.clock(),

    constraint job_logs_pkey primary key (org_id, job_id, execution_id),
    constraint log_is_small check (octet_length(head) <= 65536 and octet_length(tail) <= 65536)
);

do $do$
declare
    each text;
begin
    foreach each in array array['followers', 'job_logs'] loop
        execute format('alter table {schema}.%I enable row level security', each);
        execute format('alter table {schema}.%I force row level security', each);
    end loop;
end
$do$;
create policy one_tenant on {schema}.job_logs
    using (not (select {schema}.is_confined()) or org_id = (select {schema}.current_org()))
    with check (not (select {schema}.is_confined()) or org_id = (select {schema}.current_org()));
create policy own_jobs on {schema}.job_logs as restrictive for select
    using (not (select {schema}.own_only()) or {schema}.is_own(job_id));
-- A session that is confined to a tenant tells followers of all tenants, by functions that say so
-- with this setting. A tenant has no right to the table.
create policy one_tenant on {schema}.followers
    using (current_setting('pgnotifyq.tells', true) = 'yes'
        or not (select {schema}.is_confined()) or org_id = (select {schema}.current_org()))
    with check (current_setting('pgnotifyq.tells', true) = 'yes'
        or not (select {schema}.is_confined()) or org_id = (select {schema}.current_org()));

-- A log goes with its attempt, however that goes.
create function {schema}.logs_go_with_their_attempts() returns trigger
language plpgsql
set jit = off
set enable_seqscan = off
as $$
begin
    -- Rights are asked for one by one: of a list, any is enough.
    if pg_relation_size('{schema}.job_logs') > 0 and has_table_privilege('{schema}.job_logs', 'select')
        and has_table_privilege('{schema}.job_logs', 'delete')
    then
        delete from {schema}.job_logs as l
        using gone as g
        where l.org_id = g.org_id and l.job_id = g.job_id and l.execution_id = g.id;
    end if;
    return null;
end
$$;
create trigger logs_go_with_them
after delete on {schema}.job_executions
referencing old table as gone
for each statement execute function {schema}.logs_go_with_their_attempts();

-- Followers are told of what is enqueued. Otherwise as before (0013).
create or replace function {schema}.wake_after_insert() returns trigger
language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $$
begin
    if pg_relation_size('{schema}.followers') > 0 then
        perform {schema}.tell_of_enqueued(
            array(select i.id from inserted as i order by i.id limit 1000),
            array(select i.id from inserted as i where i.status = 'running' order by i.id limit 1000));
        perform {schema}.tell_of_lost(o.org_id, o.queue_name, o.jobs)
        from (
            select r.org_id, r.queue_name, count(*) as jobs
            from (select i.org_id, i.queue_name from inserted as i order by i.id offset 1000) as r
            group by r.org_id, r.queue_name
        ) as o;
    end if;
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

-- Followers are told of a job that is cancelled, pending or running. Otherwise as before (0016).
create or replace function {schema}.note_cancel() returns trigger
language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $$
begin
    new.completed_at := coalesce(new.completed_at, {schema}.clock());
    new.unique_until := null;
    if new.current_execution_id is not null then
        perform {schema}.notify(
            {schema}.worker_channel(new.locked_by), 'cancel ' || new.id || ' ' || new.current_execution_id);
    elsif new.awaited then
        perform {schema}.announce_end(new.id);
    end if;
    if pg_relation_size('{schema}.followers') > 0 then
        if new.current_execution_id is not null then
            perform {schema}.tell_followers('stopping', array[new.id], array[new.attempts::text]);
        elsif old.current_execution_id is null then  -- else an attempt ends: note_attempts tells
            perform {schema}.tell_followers('ended', array[new.id], array[new.attempts || ' cancelled']);
        end if;
    end if;
    if old.status = 'pending' and pg_relation_size('{schema}.hooks') > 0 then
        perform {schema}.fire_hook(new);
    end if;
    return new;
end
$$;
revoke all on function {schema}.note_cancel() from public;
