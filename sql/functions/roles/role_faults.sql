-- role_faults: which rights each role of the table `roles` lacks, and which it has too much. A
-- right counts wherever it comes from: granted to the role, to one that it is a member of, or to
-- all.
--
-- In:     one role, and what it is taken for; null: those in `roles`.
-- Out:    kind and name; `missing` or `excess`; what; the statement that mends it. Null: there is
--         no statement that anybody may say blindly.
create or replace function {schema}.role_faults(role_name text default null, kind text default null)
returns table (kind text, role_name text, fault text, what text, remedy text)
language sql stable
set search_path = pg_catalog, pg_temp
as $$
    with known as materialized (
        select r.kind, r.role_name, p.oid, p.rolsuper, p.rolbypassrls, p.rolcreaterole, p.rolcanlogin
        from (
            select n.kind, n.role_name from {schema}.roles as n where role_faults.role_name is null
            union all
            select role_faults.kind, role_faults.role_name where role_faults.role_name is not null
        ) as r
        left join pg_roles as p on p.rolname = r.role_name
    ), meant as materialized (
        select k.kind, k.role_name from known as k
        union all
        -- Before PostgreSQL 16, a role that may take on the role of tenants has its rights, too.
        select 'tenant', k.role_name from known as k
        where k.kind = 'worker' and current_setting('server_version_num')::integer < 160000
    ), wanted as materialized (
        select * from {schema}.wanted_rights()
    ), relations as materialized (
        select c.oid, c.relname::text as name, c.relowner from pg_class as c
        where c.relnamespace = to_regnamespace({schema_text}) and c.relkind in ('r', 'v', 'p')
    ), privileges (name) as (
        values ('select'), ('insert'), ('update'), ('delete'), ('truncate'), ('references'), ('trigger')
    ), faults as (
        select k.kind, k.role_name, 'missing' as fault, 'the role, which does not exist' as what, null as remedy
        from known as k where k.oid is null
        union all
        select k.kind, k.role_name, 'missing', 'usage on schema ' || {schema_text},
            format('grant usage on schema %I to %I', {schema_text}, k.role_name)
        from known as k where not has_schema_privilege(k.oid, to_regnamespace({schema_text}), 'usage')
        union all
        select k.kind, k.role_name, 'missing', format('%s%s on %s', w.privilege, ' (' || array_to_string(w.column_names, ', ') || ')', w.object),
            format('grant %s%s on %I.%I to %I', w.privilege,
                ' (' || (select string_agg(quote_ident(c.name), ', ') from unnest(w.column_names) as c(name)) || ')',
                {schema_text}, w.object, k.role_name)
        from known as k join wanted as w on w.kind = k.kind and w.class = 'relation' join relations as r on r.name = w.object
        where k.oid is not null and case when w.column_names is null then not has_table_privilege(k.oid, r.oid, w.privilege)
            else exists (select from unnest(w.column_names) as c(name) where not has_column_privilege(k.oid, r.oid, c.name, w.privilege)) end
        union all
        select k.kind, k.role_name, 'missing', 'execute on ' || w.object,
            format('grant execute on function %I.%s to %I', {schema_text}, w.object, k.role_name)
        from known as k join wanted as w on w.kind = k.kind and w.class = 'function'
        where k.oid is not null
            and not coalesce(has_function_privilege(k.oid, to_regprocedure('{schema}.' || w.object), 'execute'), true)
        union all
        -- Rights to a whole table, where no right is wanted, or only one to columns.
        select k.kind, k.role_name, 'excess', format('%s on %s', p.name, r.name),
            format('revoke %s on %I.%I from %I', p.name, {schema_text}, r.name, k.role_name)
        from known as k, relations as r, privileges as p
        where k.oid is not null and not k.rolsuper and r.relowner <> k.oid and has_table_privilege(k.oid, r.oid, p.name)
            and not exists (
                select from wanted as w join meant as o on o.kind = w.kind and o.role_name = k.role_name
                where w.object = r.name and w.privilege = p.name and w.column_names is null)
        union all
        select k.kind, k.role_name, 'excess', format('%s (%s) on %s', p.name, a.attname, r.name),
            format('revoke %s (%I) on %I.%I from %I', p.name, a.attname, {schema_text}, r.name, k.role_name)
        from known as k, relations as r join pg_attribute as a on a.attrelid = r.oid and a.attnum > 0 and not a.attisdropped,
            (values ('select'), ('insert'), ('update')) as p(name)
        where k.oid is not null and not k.rolsuper and r.relowner <> k.oid and not has_table_privilege(k.oid, r.oid, p.name)
            and has_column_privilege(k.oid, r.oid, a.attnum, p.name)
            and not exists (
                select from wanted as w join meant as o on o.kind = w.kind and o.role_name = k.role_name
                where w.object = r.name and w.privilege = p.name and (w.column_names is null or a.attname = any (w.column_names)))
        union all
        select k.kind, k.role_name, 'excess', format('execute on %s', p.oid::regprocedure),
            format('revoke execute on function %s from %I', p.oid::regprocedure, k.role_name)
        from known as k, pg_proc as p
        where k.oid is not null and not k.rolsuper and p.proowner <> k.oid and p.prosecdef
            and p.pronamespace = to_regnamespace({schema_text}) and has_function_privilege(k.oid, p.oid, 'execute')
            and not exists (
                select from wanted as w join meant as o on o.kind = w.kind and o.role_name = k.role_name
                where w.class = 'function' and to_regprocedure('{schema}.' || w.object) = p.oid)
        union all
        select k.kind, k.role_name, 'excess', e.what, e.remedy
        from known as k, lateral (
            values
                (k.rolsuper, 'superuser', format('alter role %I nosuperuser', k.role_name)),
                (k.rolbypassrls and not k.rolsuper, 'exempt from row security', format('alter role %I nobypassrls', k.role_name)),
                (k.rolcreaterole and not k.rolsuper, 'may make roles', format('alter role %I nocreaterole', k.role_name)),
                (not k.rolsuper and has_schema_privilege(k.oid, to_regnamespace({schema_text}), 'create'),
                    'create on schema ' || {schema_text}, format('revoke create on schema %I from %I', {schema_text}, k.role_name))
        ) as e(holds, what, remedy)
        where k.oid is not null and e.holds
        union all
        -- A tenant's login must not be able to take on another role.
        select k.kind, k.role_name, 'excess', 'member of ' || m.roleid::regrole, format('revoke %s from %I', m.roleid::regrole, k.role_name)
        from known as k join pg_auth_members as m on m.member = k.oid
        where k.kind = 'tenant'
        union all
        select k.kind, k.role_name, 'excess', 'owner of something in this database', null
        from known as k
        where k.kind = 'tenant' and exists (
            select from pg_shdepend as d
            where d.refclassid = 'pg_authid'::regclass and d.refobjid = k.oid and d.deptype = 'o'
              and d.dbid = (select b.oid from pg_database as b where b.datname = current_database()))
        union all
        -- Each role may change its own settings, so a handler may change the login's. They would
        -- hinder the next sessions of all tenants.
        select k.kind, k.role_name, 'excess', 'settings of its own: ' || array_to_string(s.setconfig, ', '),
            format('alter role %I reset all', k.role_name)
        from known as k join pg_db_role_setting as s on s.setrole = k.oid
        where k.kind = 'tenant' and s.setconfig <> array['track_activities=off']
    )
    select f.kind, f.role_name, f.fault, f.what, f.remedy from faults as f order by f.kind, f.role_name, f.fault desc, f.what
$$;
