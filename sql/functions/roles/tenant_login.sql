-- tenant_login: the login for tenants' transactions that `migrate --tenant-login` made, and its
-- password. No row: none was made.
-- Rights: the owner's, because no other role may read the table. Only workers may ask.
create or replace function {schema}.tenant_login() returns table (role_name text, password text)
language sql stable security definer
set search_path = pg_catalog, pg_temp
as $$
    select l.role_name, l.password
    from {schema}.tenant_logins as l join pg_roles as p on p.rolname = l.role_name and p.rolcanlogin
    order by l.made_at desc
    limit 1
$$;
revoke all on function {schema}.tenant_login() from public;

-- tenant_key: the key of the tokens, in hexadecimal. Rights: as of tenant_login.
create or replace function {schema}.tenant_key() returns text
language sql stable security definer
set search_path = pg_catalog, pg_temp
as $$ select encode(k.key, 'hex') from {schema}.tenant_keys as k order by k.made_at desc limit 1 $$;
revoke all on function {schema}.tenant_key() from public;

-- make_tenant_login: make that login, with a password that nobody is told. It is a member of
-- nothing and owns nothing. If it is there already, its password is new.
--
-- All its sessions are of one role, so they could read each other's statements in pg_stat_activity.
-- If a superuser makes the login, the statements are hidden.
create or replace function {schema}.make_tenant_login() returns text
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
declare
    own constant text := {schema}.own_role_name('tenant_login');
    secret constant text := replace(gen_random_uuid()::text || gen_random_uuid()::text, '-', '');
begin
    if not exists (select from pg_roles as p where p.rolname = own) then
        execute format('create role %I nosuperuser nocreatedb nocreaterole noinherit noreplication nobypassrls', own);
    end if;
    execute format('alter role %I login password %L', own, secret);
    begin
        execute format('alter role %I set track_activities = off', own);
    exception when insufficient_privilege then
        null;
    end;
    insert into {schema}.tenant_logins (role_name, password) values (own, secret)
    on conflict (role_name) do update set password = excluded.password, made_at = clock_timestamp();
    insert into {schema}.roles (kind, role_name) values ('tenant', own) on conflict do nothing;
    return own;
end
$$;
