-- The database knows what handlers want. A worker publishes its handlers, and takes no job that it
-- has no handler for. If an enqueue does not say a value, the value is null and not a number: the
-- handler says it.
--
-- Two new indexes on pending jobs are built. Otherwise nothing here rewrites or reads the table of
-- jobs.

-- One row for each job type of a worker. The row goes with its worker.
create table {schema}.handlers (
    worker_id uuid not null,
    job_type {schema}.job_type not null,
    -- The queue of jobs that were enqueued without one. Null: the queue `default`.
    queue_name {schema}.queue_name,
    -- The number of attempts of jobs that do not say one. Null: three.
    max_attempts integer,
    published_at timestamptz not null default {schema}.clock(),

    constraint handlers_pkey primary key (worker_id, job_type),
    constraint handlers_of_a_worker foreign key (worker_id) references {schema}.worker_heartbeats (worker_id) on delete cascade,
    constraint maximum_is_bounded check (max_attempts between 1 and 1000)
);
create index handlers_by_type on {schema}.handlers (job_type, published_at);

-- The job types that a sleeper can be woken for. Null: all that its queues hold, as for a worker
-- whose code is older than this.
alter table {schema}.sleepers add column job_types text[];

-- A maximum that was not said is null until the claim, which writes the handler's number, or three.
-- While it is null, the bound of all jobs counts. The rows that are there obey both rules, so they
-- are not read again.
alter table {schema}.jobs
    alter column max_attempts drop default,
    alter column max_attempts drop not null,
    drop constraint attempts_within_maximum,
    drop constraint pending_has_an_attempt_left,
    add constraint attempts_within_maximum check (attempts >= 0 and attempts <= coalesce(max_attempts, 1000)) not valid,
    add constraint pending_has_an_attempt_left check (status <> 'pending' or attempts < coalesce(max_attempts, 1000)) not valid,
    -- The job was enqueued without a queue, and no handler of its type was known. The first handler
    -- that is published takes the job to its queue.
    add column queue_not_said boolean not null default false;

-- A claim reads this index if jobs that the worker has no handler for stand before others
-- (functions/claim/claim.sql). It is on an expression. If it were on two columns, jobs_claimable
-- and a filter would look as good to a planner that believes the table empty.
create index jobs_claimable_by_type on {schema}.jobs ((queue_name || ' ' || job_type), priority desc, scheduled_at, id)
where is_claimable;

-- A key belongs to its job type: an e-mail and an invoice of one order do not keep each other away.
drop index {schema}.jobs_unique_key;
create unique index jobs_unique_key on {schema}.jobs (org_id, job_type, unique_key) where holds_unique_key;

-- Sleepers are woken for jobs that they have handlers for. Otherwise as before (0005).
create or replace function {schema}.wake_after_insert() returns trigger
language plpgsql
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

create or replace function {schema}.wake_after_reschedule() returns trigger
language plpgsql
as $$
begin
    perform {schema}.wake(new.queue_name, new.scheduled_at, 1, null, new.job_type);
    return null;
end
$$;

-- A tenant enqueues, too, and its inserts look up handlers.
do $do$
begin
    if exists (select from pg_roles where rolname = {tenant_role_text}) then
        grant select on {schema}.handlers to {tenant_role};
    end if;
end
$do$;
