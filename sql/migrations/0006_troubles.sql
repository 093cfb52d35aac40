-- Troubles: jobs whose rows could not be written, read, ended, pruned or run. The row is put aside, the rest goes on, and it is looked
-- at again later. Which errors are a row's own is decided in one place: pgnotifyq/ledger/errors.py (`whose`).

-- One row a job in trouble; empty as a rule. It is gone as soon as the verb succeeds, or the job is.
create table {schema}.job_troubles (
    org_id uuid not null,
    job_id uuid not null,
    -- What could not be done: claim, complete, retry, snooze, release, cancel, bury, reclaim, prune.
    verb text not null,
    sqlstate text not null,
    error_message text not null,
    first_at timestamptz not null,
    last_at timestamptz not null,
    tries integer not null,
    -- Nobody tries the verb again before this.
    look_at timestamptz not null,
    -- How the execution was to be settled, in the words of settle(); null where the verb is none of its kinds. The job is still held, and
    -- a later look ends it as it was meant: work that was done is not done again because its completion could not be written.
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

-- What our code never writes: three times an infinite lease is an error, of whoever looks at the row. Rows that are there already are not
-- asked.
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
