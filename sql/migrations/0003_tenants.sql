-- Row security, forced, on every table with an org_id (tests walk the catalog, so that a new table cannot forget it).
--
-- Services run as the connecting role and see every row; a handler's tenant transaction confines itself, by
-- `set local role <schema>_tenant` and by `set local pgnotifyq.org_id`. The role is the boundary for whoever can send SQL
-- of their own (any role can set a custom setting); the setting chooses the tenant. Where roles may not be created, as on
-- some managed servers, the setting alone confines: `migrate` and `doctor` say so.

do $do$
begin
    if not exists (select from pg_roles where rolname = {tenant_role_text}) then
        create role {tenant_role} nologin;
    end if;
    if not pg_has_role(current_user, {tenant_role_text}, 'member') then
        grant {tenant_role} to current_user;
    end if;
exception
    when insufficient_privilege then
        raise notice 'role % could not be created: tenants are confined by the setting pgnotifyq.org_id only', {tenant_role_text};
end
$do$;

-- The tenant of this transaction, or null.
create or replace function {schema}.current_org() returns uuid
language sql stable parallel safe
as $$ select nullif(current_setting('pgnotifyq.org_id', true), '')::uuid $$;

-- Whether this session sees one tenant only: it runs as the tenant role, or has chosen a tenant.
create or replace function {schema}.is_confined() returns boolean
language sql stable parallel safe
as $$
    select current_user = {tenant_role_text} or nullif(current_setting('pgnotifyq.org_id', true), '') is not null
$$;

alter table {schema}.jobs enable row level security;
alter table {schema}.jobs force row level security;
create policy one_tenant on {schema}.jobs
    using (not (select {schema}.is_confined()) or org_id = (select {schema}.current_org()))
    with check (not (select {schema}.is_confined()) or org_id = (select {schema}.current_org()));

alter table {schema}.job_executions enable row level security;
alter table {schema}.job_executions force row level security;
create policy one_tenant on {schema}.job_executions
    using (not (select {schema}.is_confined()) or org_id = (select {schema}.current_org()))
    with check (not (select {schema}.is_confined()) or org_id = (select {schema}.current_org()));

alter table {schema}.dead_letter_jobs enable row level security;
alter table {schema}.dead_letter_jobs force row level security;
create policy one_tenant on {schema}.dead_letter_jobs
    using (not (select {schema}.is_confined()) or org_id = (select {schema}.current_org()))
    with check (not (select {schema}.is_confined()) or org_id = (select {schema}.current_org()));

-- Every attempt, ended or under way.
create view {schema}.executions with (security_invoker = true) as
select e.id, e.job_id, e.org_id, e.attempt, e.worker_id, e.outcome, e.started_at, e.ended_at, e.error_message
from {schema}.job_executions as e
union all
select j.current_execution_id, j.id, j.org_id, j.attempts, j.locked_by,
       case when j.status = 'cancelled' then 'stopping' else 'running' end, j.started_at, null, null
from {schema}.jobs as j
where j.is_held;

-- What a handler may do as its tenant: see its jobs, enqueue, cancel.
do $do$
begin
    if exists (select from pg_roles where rolname = {tenant_role_text}) then
        grant usage on schema {schema} to {tenant_role};
        grant select, insert on {schema}.jobs to {tenant_role};
        grant update (status, awaited, error_message) on {schema}.jobs to {tenant_role};
        grant select on {schema}.job_executions, {schema}.dead_letter_jobs, {schema}.executions, {schema}.sleepers to {tenant_role};
    end if;
end
$do$;
