-- Troubles: jobs whose rows could not be written, read, ended, pruned or run. Such a row is put
-- aside, and the rest goes on. The row is looked at again later. One place decides which errors are
-- a row's own: pgnotifyq/ledger/errors.py (`whose`).

-- One row for each job in trouble; empty as a rule. The row goes when the verb succeeds, or when
-- the job goes.
create table {schema}.job_troubles (
    org_id uuid not null,
    job_id uuid not null,
    -- What could not be done: claim, complete, retry, snooze, release, cancel, bury, reclaim,
    -- prune.
    verb text not null,
    sqlstate text not null,
    error_message text not null,
    first_at timestamptz not null,
    last_at timestamptz not null,
    tries integer not null,
    -- No worker tries the verb again before this time.
    look_at timestamptz not null,
    -- How the execution was to be settled, in the words of settle(). Null: the verb is not one of
    -- its kinds. The job is still held. A later look ends it as its worker meant: work that was
    -- done is not done again only because its completion could not be written.
    execution_id uuid,
    worker_id uuid,
    outcome text,
    delay_seconds double precision,
    wished_error text,
    wished_result text,
    reason text,

    constraint job_troubles_pkey primary key (org_id, job_id),
    constraint tries_is_positive check (tries >= 1)
);

-- Our code never writes such a lease. Three times an infinite lease is an error, which would hit
-- every reader of the row. Rows that are there already are not checked.
alter table {schema}.worker_heartbeats
    add constraint lease_is_bounded check (lease_seconds > 0 and lease_seconds < 1000000000) not valid;

alter table {schema}.job_troubles enable row level security;
alter table {schema}.job_troubles force row level security;
create policy one_tenant on {schema}.job_troubles
    using (not (select {schema}.is_confined()) or org_id = (select {schema}.current_org()))
    with check (not (select {schema}.is_confined()) or org_id = (select {schema}.current_org()));

do $do$
begin
    if exists (select from pg_roles where rolname = {tenant_role_text}) then
        grant select on {schema}.job_troubles to {tenant_role};
    end if;
end
$do$;
