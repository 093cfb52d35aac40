-- keep_roles: give each role of the table `roles` the rights that it lacks, and make sure that the
-- role of tenants is there. `migrate` calls it each time, because a dump that was restored, a new
-- table or a new release may want grants.
--
-- Out:    what was done, or could not be, for people.
-- Locks:  the tables that a grant is missing on.
--
-- It takes nothing away: people may have given a role more on purpose. Doctor reports that.
create or replace function {schema}.keep_roles() returns setof text
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
declare
    tenant text;
    fault record;
    each record;
begin
    perform {schema}.keep_tenant_role();
    for fault in
        select f.role_name, f.what, f.remedy from {schema}.role_faults() as f where f.fault = 'missing' and f.remedy is not null
    loop
        begin
            execute fault.remedy;
            return next format('role %s: granted %s', fault.role_name, fault.what);
        exception when insufficient_privilege then
            return next format('role %s: %s could not be granted: %s', fault.role_name, fault.what, sqlerrm);
        end;
    end loop;
    -- If the tenants' role cannot log in, workers take it on.
    for each in
        select t.role_name as tenant, m.role_name as member
        from {schema}.roles as t join pg_roles as p on p.rolname = t.role_name and not p.rolcanlogin,
            (select r.role_name from {schema}.roles as r join pg_roles as q on q.rolname = r.role_name where r.kind = 'worker'
             union select current_user) as m(role_name)
        where t.kind = 'tenant' and not {schema}.may_take_on(m.role_name, t.role_name)
    loop
        begin
            if current_setting('server_version_num')::integer >= 160000 then
                execute format('grant %I to %I with set true, inherit false', each.tenant, each.member);
            else
                execute format('grant %I to %I', each.tenant, each.member);
            end if;
            return next format('role %s: may take on %s', each.member, each.tenant);
        exception when insufficient_privilege then
            return next format('role %s: may not take on %s: %s', each.member, each.tenant, sqlerrm);
        end;
    end loop;
    -- Grants that were given by hand: a role that may use the schema may fence its own transaction.
    for each in
        select distinct p.rolname as name
        from pg_namespace as n, aclexplode(n.nspacl) as a join pg_roles as p on p.oid = a.grantee
        where n.nspname = {schema_text} and a.privilege_type = 'USAGE' and not p.rolsuper
            and not exists (select from {schema}.roles as r where r.role_name = p.rolname)
            and not (has_function_privilege(p.oid, '{schema}.fence(uuid, uuid)', 'execute')
                and has_function_privilege(p.oid, '{schema}.save(uuid, uuid, text)', 'execute'))
    loop
        execute format('grant execute on function {schema}.fence(uuid, uuid), {schema}.meet_fence(uuid, uuid, text),'
            ' {schema}.save(uuid, uuid, text) to %I', each.name);
    end loop;
    -- And a role that enqueues is told which job has a key, and may take the key.
    for each in
        select distinct p.rolname as name, w.object
        from {schema}.wanted_rights() as w, pg_class as c, aclexplode(c.relacl) as a join pg_roles as p on p.oid = a.grantee
        where c.oid = '{schema}.jobs'::regclass and a.privilege_type = 'INSERT' and not p.rolsuper
            and not exists (select from {schema}.roles as r where r.role_name = p.rolname)
            and w.kind = 'producer' and w.class = 'function' and not has_function_privilege(p.oid, '{schema}.' || w.object, 'execute')
    loop
        execute format('grant execute on function {schema}.%s to %I', each.object, each.name);
    end loop;
    return query select * from {schema}.extend_protection();
end
$$;

-- may_take_on: whether a role may `set role` to another. Since PostgreSQL 16 a role may be a member
-- without that right.
create or replace function {schema}.may_take_on(role_name text, other text) returns boolean
language sql stable
as $$
    select coalesce(bool_or(pg_has_role(p.oid, o.oid,
        case when current_setting('server_version_num')::integer >= 160000 then 'SET' else 'MEMBER' end)), false)
    from pg_roles as p, pg_roles as o
    where p.rolname = may_take_on.role_name and o.rolname = may_take_on.other
$$;

-- own_role_name: the name of a role that we make. It has schema and database in it, because roles
-- are the server's, and another database may have a queue as well.
create or replace function {schema}.own_role_name(suffix text) returns text
language sql stable
as $$
    select case when octet_length(n.whole) <= 63 then n.whole
        else {schema_text} || '_' || left(md5(current_database()), 16) || '_' || suffix end
    from (select {schema_text} || '_' || current_database() || '_' || suffix as whole) as n
$$;

-- keep_tenant_role: make sure that there is a role that a worker can take on for a tenant's
-- transaction, if no login of the tenants' is known.
--
-- The role of version 12 and earlier, <schema>_tenant, was the whole server's. What users granted
-- to it on tables of theirs in this database is granted to the new one, and its rights in the
-- schema are taken away. If roles may not be made here, the former role stays in use, as a DBA's.
create or replace function {schema}.keep_tenant_role() returns void
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
declare
    former constant text := {tenant_role_text};
    own constant text := {schema}.own_role_name('tenant');
    taken text;
    each record;
begin
    if exists (select from {schema}.roles as r join pg_roles as p on p.rolname = r.role_name where r.kind = 'tenant') then
        return;
    end if;
    begin
        if not exists (select from pg_roles as p where p.rolname = own) then
            execute format('create role %I nologin', own);
        end if;
        taken := own;
    exception when insufficient_privilege then
        select p.rolname into taken from pg_roles as p where p.rolname = former and {schema}.may_take_on(current_user::text, former);
        if taken is null then
            raise notice 'role % could not be created: tenants are confined against mistakes, not against SQL of the handler''s own', own;
            return;
        end if;
    end;
    delete from {schema}.roles as r where r.kind = 'tenant';
    insert into {schema}.roles (kind, role_name) values ('tenant', taken);
    if taken = former or not exists (select from pg_roles as p where p.rolname = former) then
        return;
    end if;
    for each in
        select c.oid::regclass as name, a.privilege_type as privilege, c.relkind, n.nspname
        from pg_class as c join pg_namespace as n on n.oid = c.relnamespace, aclexplode(c.relacl) as a
        where a.grantee = (select p.oid from pg_roles as p where p.rolname = former)
    loop
        begin
            if each.nspname = {schema_text} then
                execute format('revoke all on table %s from %I', each.name, former);
            else
                execute format('grant %s on %s %s to %I', each.privilege,
                    case when each.relkind = 'S' then 'sequence' else 'table' end, each.name, taken);
            end if;
        exception when insufficient_privilege then
            raise notice 'the grant of % on % to % could not be given to %', each.privilege, each.name, former, taken;
        end;
    end loop;
    begin
        execute format('revoke all on schema {schema} from %I', former);
        execute format('revoke all (status, awaited, error_message) on {schema}.jobs from %I', former);
        -- Another database may use it still. Then it stays.
        execute format('drop role %I', former);
    exception when insufficient_privilege or dependent_objects_still_exist then
        null;
    end;
end
$$;

-- grant_role: note what a role is. keep_roles gives it the rights.
create or replace function {schema}.grant_role(kind text, role_name text) returns void
language plpgsql volatile
as $$
begin
    if not exists (select from pg_roles as p where p.rolname = grant_role.role_name) then
        raise exception 'role % does not exist', quote_ident(grant_role.role_name)
            using errcode = 'PNQ02', hint = 'Make it first: create role ... login.';
    end if;
    insert into {schema}.roles (kind, role_name) values (grant_role.kind, grant_role.role_name) on conflict do nothing;
end
$$;
