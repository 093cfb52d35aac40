-- protect: let a tenant's transactions see and write only its rows in a table of the application's.
--
-- In:     the table, as SQL names it; the column that says whose a row is. It is a uuid, as in our
--         tables, or a text or number, as `org()` takes them. `rights`: what the tenants' roles
--         may do there, as in 'select, insert'; null: nothing is granted.
-- Out:    how many tables have the policies now: more than one if the table is partitioned.
-- Locks:  the table, as `alter table` does, for a moment.
-- Rights: the table's owner's.
--
-- Row security is enabled, and forced on the owner. The policies:
--
-- - `<schema>_one_tenant`, restrictive, for everybody: a session that is confined to a tenant has
--   that tenant's rows, and other sessions are not concerned.
-- - `<schema>_as_tenant`, restrictive, for the tenants' roles: the same without the `or`, so that
--   an index on the column serves the tenants' queries. A column that is no uuid is served by an
--   index on `org_or_null(column::text)`. PostgreSQL takes restrictive policies in order of name,
--   and gives such an index to the first alone, so this name comes before the other.
-- - `<schema>_rows`, permissive, for everybody: only if row security was off before. Other roles
--   go on as they did. If it was on, the policies that are there go on to say who sees what, and
--   ours only take away.
--
-- It may be called again, with another column, too.
create or replace function {schema}.protect(table_name text, column_name text, rights text default null) returns integer
language plpgsql volatile
as $$
declare
    given oid := to_regclass(protect.table_name)::oid;
    kind text;
    whose text;
    was text;
    each oid;
    protected integer := 0;
    tenants text := (select string_agg(quote_ident(t), ', ') from {schema}.tenant_roles() as t);
begin
    perform {schema}.check_protectable(given, protect.table_name);
    select format_type(a.atttypid, null) into kind
    from pg_catalog.pg_attribute as a
    where a.attrelid = given and a.attname = protect.column_name and a.attnum > 0 and not a.attisdropped;
    if kind is null then
        raise exception 'table % has no column %', given::regclass, quote_literal(column_name)
            using errcode = 'PNQ02', hint = 'Name the column that says whose a row is.';
    end if;
    whose := case
        when kind = 'uuid' then format('%I', column_name)
        when kind in ('text', 'character varying', 'smallint', 'integer', 'bigint') then
            format('{schema}.org_or_null(%I::text)', column_name)
    end;
    if whose is null then
        raise exception 'column % of table % is of type %, which names no tenant', quote_literal(column_name), given::regclass, kind
            using errcode = 'PNQ02', hint = 'Use a column of type uuid, text, varchar, smallint, integer or bigint.';
    end if;
    if rights !~* '^\s*(select|insert|update|delete)(\s*,\s*(select|insert|update|delete))*\s*$' then
        raise exception 'rights % are not known', quote_literal(left(rights, 80))
            using errcode = 'PNQ02', hint = 'Use select, insert, update, delete, with commas between them.';
    end if;
    for each in select p.relid from pg_partition_tree(given) as p union select given loop
        was := {schema}.unprotected_state(each);
        execute format('alter table %s enable row level security, force row level security', each::regclass);
        execute format('drop policy if exists %I on %s', {schema_text} || '_one_tenant', each::regclass);
        execute format(
            'create policy %I on %s as restrictive to public using (%s) with check (%3$s)', {schema_text} || '_one_tenant',
            each::regclass, format('not (select {schema}.is_confined()) or %s = (select {schema}.current_org())', whose));
        -- What row security was before, for unprotect.
        execute format('comment on policy %I on %s is %L', {schema_text} || '_one_tenant', each::regclass, was);
        execute format('drop policy if exists %I on %s', {schema_text} || '_as_tenant', each::regclass);
        if tenants is not null then
            execute format(
                'create policy %I on %s as restrictive to %s using (%s) with check (%4$s)',
                {schema_text} || '_as_tenant', each::regclass, tenants, format('%s = (select {schema}.current_org())', whose));
            if rights is not null then
                execute format('grant %s on %s to %s', rights, each::regclass, tenants);
            end if;
        end if;
        execute format('drop policy if exists %I on %s', {schema_text} || '_rows', each::regclass);
        if was like 'off%%' then
            execute format(
                'create policy %I on %s to public using (true) with check (true)', {schema_text} || '_rows', each::regclass);
        end if;
        protected := protected + 1;
    end loop;
    return protected;
end
$$;

-- unprotect: take away what `protect` has put on a table. Row security is as it was before.
--
-- Out:    from how many tables; 0: it was not protected.
create or replace function {schema}.unprotect(table_name text) returns integer
language plpgsql volatile
as $$
declare
    given oid := to_regclass(unprotect.table_name)::oid;
    was text;
    each oid;
    bared integer := 0;
begin
    perform {schema}.check_protectable(given, unprotect.table_name);
    for each in
        select p.polrelid
        from pg_catalog.pg_policy as p
        where p.polname = {schema_text} || '_one_tenant'
          and (p.polrelid = given or p.polrelid in (select t.relid from pg_partition_tree(given) as t))
    loop
        was := {schema}.unprotected_state(each);
        execute format('drop policy if exists %I on %s', {schema_text} || '_one_tenant', each::regclass);
        execute format('drop policy if exists %I on %s', {schema_text} || '_as_tenant', each::regclass);
        execute format('drop policy if exists %I on %s', {schema_text} || '_rows', each::regclass);
        if was like '%%unforced' then
            execute format('alter table %s no force row level security', each::regclass);
        end if;
        if was like 'off%%' and not exists (select from pg_catalog.pg_policy as p where p.polrelid = each) then
            execute format('alter table %s disable row level security', each::regclass);
        end if;
        bared := bared + 1;
    end loop;
    return bared;
end
$$;

-- extend_protection: extend the policies and rights on protected tables to the tenants' roles that
-- came later. keep_roles calls it, at each `migrate`.
--
-- Out:    what was done, or could not be, for people.
create or replace function {schema}.extend_protection() returns setof text
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
declare
    each record;
begin
    for each in
        select p.polrelid::regclass as of_table, n.new_roles,
            (select string_agg(distinct a.privilege_type, ', ')
             from pg_class as c, aclexplode(c.relacl) as a join pg_roles as r on r.oid = a.grantee
             where c.oid = p.polrelid and r.rolname in (select {schema}.tenant_roles())
               and a.privilege_type in ('SELECT', 'INSERT', 'UPDATE', 'DELETE')) as rights,
            (select string_agg(quote_ident(t), ', ') from {schema}.tenant_roles() as t) as tenants,
            coalesce(q.polname, {schema_text} || '_as_tenant') as name
        from pg_policy as p
        left join pg_policy as q on q.polrelid = p.polrelid and q.polname = {schema_text} || '_as_tenant',
            lateral (
                select string_agg(quote_ident(r.rolname), ', ') as new_roles
                from pg_roles as r
                where r.rolname in (select {schema}.tenant_roles()) and not r.oid = any (coalesce(q.polroles, '{{}}'))
            ) as n
        where p.polname = {schema_text} || '_one_tenant' and q.polname is not null and n.new_roles is not null
        order by 1
    loop
        begin
            execute format('alter policy %I on %s to %s', each.name, each.of_table, each.tenants);
            if each.rights is not null then
                execute format('grant %s on %s to %s', each.rights, each.of_table, each.new_roles);
            end if;
            return next format('table %s: protected for %s, too', each.of_table, each.new_roles);
        exception when insufficient_privilege then
            return next format('table %s could not be protected for %s, too: %s', each.of_table, each.new_roles, sqlerrm);
        end;
    end loop;
end
$$;

-- unprotected_state: what row security of a table is without `protect`: `on` or `off`, and
-- `forced` or `unforced`.
create or replace function {schema}.unprotected_state(of_table oid) returns text
language sql stable
as $$
    select coalesce(
        (select d.description
         from pg_catalog.pg_policy as p
         join pg_catalog.pg_description as d on d.objoid = p.oid and d.classoid = 'pg_catalog.pg_policy'::regclass
         where p.polrelid = c.oid and p.polname = {schema_text} || '_one_tenant'),
        concat_ws(' ', case when c.relrowsecurity then 'on' else 'off' end, case when c.relforcerowsecurity then 'forced' else 'unforced' end))
    from pg_catalog.pg_class as c
    where c.oid = of_table
$$;

-- check_protectable: refuse what is no table of the application's.
create or replace function {schema}.check_protectable(given oid, table_name text) returns void
language plpgsql stable
as $$
begin
    if not exists (select from pg_catalog.pg_class as c where c.oid = given and c.relkind in ('r', 'p')) then
        raise exception '% is no table', coalesce(quote_literal(left(table_name, 80)), 'null')
            using errcode = 'PNQ02', hint = 'Name a table with its schema, as in public.orders. A view follows the rights of its tables: '
                || 'create view ... with (security_invoker = true).';
    end if;
    if exists (
        select from pg_catalog.pg_class as c
        where c.oid = given and c.relnamespace in (to_regnamespace({schema_text}), 'pg_catalog'::regnamespace))
    then
        raise exception '% is no table of an application', given::regclass
            using errcode = 'PNQ02', hint = 'Tables of the queue have policies of their own.';
    end if;
end
$$;
