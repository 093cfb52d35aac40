-- What belongs to a tenant besides its jobs: its settings, its credentials, its audit trail, and
-- the name that people know it by.

-- org: the id of a tenant that has a name or a number.
--
-- A text that is a uuid, however it is written, is that uuid. Any other name becomes a uuid of
-- version 8 (RFC 9562, appendix B.2): the first bits of the SHA-256 of a fixed namespace and the
-- name in UTF-8. `model/organisation.py` does the same. It is no version 5, because PostgreSQL has
-- no SHA-1 without an extension. A number and its decimal text are one tenant. Upper and lower case
-- are two.
--
-- It stands in a migration, and not in functions/: rows and indexes keep what it returned, so it
-- never changes. The bodies are parsed here and now. So a session's search_path leads them nowhere
-- else: a policy may ask them.
--
-- org_or_null: the same. Null: the text is no name. Policies ask it, and one odd value in a table
-- must not fail every query.
create or replace function {schema}.org_or_null(name text) returns uuid
language sql immutable strict parallel safe
return (
    select case
        when p.plain ~ '^[0-9a-f]{{32}}$' then p.plain::uuid
        -- A uuid that is misspelt is no name: its job would be a stranger's.
        when name ~ '^[0-9a-fA-F-]{{24,}}$' and name ~ '-.*-.*-' then null
        when length(name) between 1 and 200 and name !~ '^ | $|[\u0001-\u001f\u007f]' then
            encode(
                set_byte(
                    set_byte(p.digest, 6, get_byte(p.digest, 6) & 15 | 128),
                    8, get_byte(p.digest, 8) & 63 | 128),
                'hex')::uuid
    end
    from (
        select regexp_replace(lower(name collate "C"), '^urn:uuid:|[-{{}}]', '', 'g') as plain,
            substring(sha256(uuid_send('5d3c0f0e-6a0b-4c3e-9f43-0c1f6f7a8b21'::uuid) || convert_to(name, 'UTF8')) from 1 for 16) as digest
    ) as p
);

create or replace function {schema}.org(name text) returns uuid
language plpgsql immutable strict parallel safe
set search_path = pg_catalog, pg_temp
as $$
declare
    found uuid := {schema}.org_or_null(name);
begin
    if found is null then
        raise exception 'tenant % is not valid', quote_literal(left(name, 80))
            using errcode = 'PNQ02',
                hint = 'Use a uuid, a number, or a name of 1 to 200 characters without control characters and outer blanks.';
    end if;
    return found;
end
$$;

create or replace function {schema}.org(number bigint) returns uuid
language sql immutable strict parallel safe
return {schema}.org_or_null(number::text);

create domain {schema}.setting_name as text constraint setting_name_fits check (value ~ '^[A-Za-z_][A-Za-z0-9_.-]{{0,99}}$');

-- Names of tenants, for people. A name that is not here works all the same: its id says it.
create table {schema}.org_names (
    org_id uuid not null,
    name text not null,
    noted_at timestamptz not null default {schema}.clock(),

    constraint org_names_pkey primary key (org_id),
    constraint name_is_of_the_id check ({schema}.org_or_null(name) = org_id)
);

-- Which role may do what is in functions/roles/wanted_rights.sql.

-- Settings: feature flags, limits of outside services. A row a setting.
create table {schema}.org_config (
    org_id uuid not null,
    name {schema}.setting_name not null,
    value jsonb not null,
    changed_at timestamptz not null default {schema}.clock(),
    changed_by text not null default session_user,

    constraint org_config_pkey primary key (org_id, name),
    constraint value_is_small check (pg_column_size(value) <= 65536)
);

-- Credentials, sealed. The database never has a key: `model/credentials.py` seals and opens. No
-- role of a tenant's reads this table.
create table {schema}.org_credentials (
    org_id uuid not null,
    name {schema}.setting_name not null,
    -- Which key has sealed it: a fingerprint.
    key_id text not null,
    sealed text not null,
    changed_at timestamptz not null default {schema}.clock(),
    changed_by text not null default session_user,

    constraint org_credentials_pkey primary key (org_id, name),
    constraint credential_is_small check (length(sealed) <= 131072)
);

-- What was done for a tenant. Rows are only added. A tenant adds them by the function `audit`
-- alone, which fills in what the tenant must not choose.
create table {schema}.org_audit (
    org_id uuid not null,
    id uuid not null default {schema}.new_id(),
    at timestamptz not null default {schema}.clock(),
    action text not null,
    details jsonb not null default '{{}}',
    -- The execution that did it. Null: no job did.
    job_id uuid,
    execution_id uuid,
    written_by text not null default session_user,

    constraint org_audit_pkey primary key (org_id, id),
    constraint action_is_short check (length(action) between 1 and 200),
    constraint details_are_small check (pg_column_size(details) <= 65536)
);
create index org_audit_by_id on {schema}.org_audit (id);

create function {schema}.refuse_audit_change() returns trigger
language plpgsql
as $$
begin
    -- prune_audit says so. A tenant that says so has no right to delete.
    if tg_op = 'DELETE' and current_setting('pgnotifyq.prunes_audit', true) = 'yes' then
        return null;
    end if;
    raise exception 'rows of the audit trail are only added'
        using errcode = 'PNQ01', hint = 'Old ones go by prune_audit(older_than_seconds).';
end
$$;
create trigger audit_is_append_only before update or delete on {schema}.org_audit
for each statement execute function {schema}.refuse_audit_change();

-- Workers keep settings and credentials in memory. The message names no tenant: anybody may listen.
create function {schema}.tell_config_change() returns trigger
language plpgsql
as $$
begin
    perform pg_notify({schema_text} || '_work', '+config');
    return null;
end
$$;
create trigger workers_are_told after insert or update or delete on {schema}.org_config
for each statement execute function {schema}.tell_config_change();
create trigger workers_are_told after insert or update or delete on {schema}.org_credentials
for each statement execute function {schema}.tell_config_change();

do $do$
declare
    each text;
begin
    foreach each in array array['org_names', 'org_config', 'org_credentials', 'org_audit'] loop
        execute format('alter table {schema}.%I enable row level security', each);
        execute format('alter table {schema}.%I force row level security', each);
        execute format(
            'create policy one_tenant on {schema}.%I'
            || ' using (not (select {schema}.is_confined()) or org_id = (select {schema}.current_org()))'
            || ' with check (not (select {schema}.is_confined()) or org_id = (select {schema}.current_org()))', each);
    end loop;
end
$do$;

-- One more argument: the tenant.
drop function if exists {schema}.requeue_all(text, text, integer);
