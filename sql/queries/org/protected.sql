-- protected: the tables of the application's that `protect` has put its policies on, and the ways
-- past these. One row a table.
--
-- Out:    its name; the column; whether row security is on, and forced; its owner, if row security
--         does not bind that role; roles beside superusers that are exempt and may read it; views
--         without security_invoker that a tenants' role may read; its partitions without the
--         policies; whether a tenants' role may read it at all; tenants' roles that came later.
with tenants as materialized (
    select r.oid, r.rolname::text as name from pg_roles as r where r.rolname in (select {schema}.tenant_roles())
)
select p.polrelid::regclass::text as table_name,
    (select string_agg(distinct a.attname::text, ', ')
     from pg_depend as d join pg_attribute as a on a.attrelid = d.refobjid and a.attnum = d.refobjsubid
     where d.classid = 'pg_policy'::regclass and d.objid = p.oid and d.refclassid = 'pg_class'::regclass
       and d.refobjid = p.polrelid and d.refobjsubid > 0) as column_name,
    c.relrowsecurity as is_on,
    c.relforcerowsecurity as is_forced,
    case when o.rolsuper or o.rolbypassrls then o.rolname::text end as exempt_owner,
    (select string_agg(r.rolname::text, ', ' order by r.rolname)
     from pg_roles as r
     where r.rolbypassrls and not r.rolsuper and r.oid <> o.oid and has_table_privilege(r.oid, c.oid, 'select')) as exempt_roles,
    (select string_agg(v.oid::regclass::text, ', ' order by v.oid::regclass::text)
     from pg_class as v
     where v.relkind in ('v', 'm')
       and not coalesce(v.reloptions && array['security_invoker=true', 'security_invoker=on', 'security_invoker=1'], false)
       and (not exists (select from tenants)
           or exists (select from tenants as t where has_table_privilege(t.oid, v.oid, 'select')))
       and exists (
           select from pg_rewrite as w join pg_depend as d on d.classid = 'pg_rewrite'::regclass and d.objid = w.oid
           where w.ev_class = v.oid and d.refclassid = 'pg_class'::regclass and d.refobjid = c.oid)) as open_views,
    (select string_agg(i.relid::regclass::text, ', ' order by i.relid::regclass::text)
     from pg_partition_tree(c.oid) as i
     where not exists (select from pg_policy as q where q.polrelid = i.relid and q.polname = p.polname)) as bare_partitions,
    exists (select from tenants as t where has_any_column_privilege(t.oid, c.oid, 'select')) as is_granted,
    (select string_agg(t.name, ', ' order by t.name) from tenants as t where has_table_privilege(t.oid, c.oid, 'truncate'))
        as may_truncate,
    (select string_agg(t.name, ', ' order by t.name)
     from tenants as t
     where not exists (
         select from pg_policy as q
         where q.polrelid = c.oid and q.polname = {schema_text} || '_as_tenant' and t.oid = any (q.polroles))) as new_roles
from pg_policy as p
join pg_class as c on c.oid = p.polrelid
join pg_roles as o on o.oid = c.relowner
where p.polname = {schema_text} || '_one_tenant'
order by 1
