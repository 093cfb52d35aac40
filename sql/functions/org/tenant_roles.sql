-- tenant_roles: the roles that tenants' transactions run as, as far as they exist.
create or replace function {schema}.tenant_roles() returns setof text
language sql stable
set search_path = pg_catalog, pg_temp
as $$ select p.rolname::text from {schema}.roles as r join pg_roles as p on p.rolname = r.role_name where r.kind = 'tenant' $$;

-- tenant_role_to_take_on: the tenants' role that the connected role may take on. Null: none.
create or replace function {schema}.tenant_role_to_take_on() returns text
language sql stable
set search_path = pg_catalog, pg_temp
as $$
    select p.rolname::text
    from {schema}.roles as r
    join pg_roles as p on p.rolname = r.role_name
    where r.kind = 'tenant' and not p.rolcanlogin and {schema}.may_take_on(current_user::text, r.role_name)
      and has_schema_privilege(p.oid, to_regnamespace({schema_text}), 'usage')
    order by 1
    limit 1
$$;
