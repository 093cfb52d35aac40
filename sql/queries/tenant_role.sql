-- tenant_role: what the role that a worker takes on for tenants is worth to the connected one. One
-- row, or none where there is no such role.
-- Out: its name; whether it may be taken on. Since PostgreSQL 16 a member may be one without that
--      right.
-- Out: whether it may look into the schema at all. A dump that was restored into another cluster
--      has no grants for it, until `migrate` gives them.
-- Out: whether row security binds it.
select
    p.rolname::text as name,
    {schema}.may_take_on(current_user::text, r.role_name) as may_be_set,
    coalesce(has_schema_privilege(p.oid, to_regnamespace({schema_text}), 'usage'), false)
        and coalesce(has_table_privilege(p.oid, to_regclass('{schema}.jobs'), 'select'), false)
        and coalesce(has_any_column_privilege(p.oid, to_regclass('{schema}.jobs'), 'insert'), false) as has_rights,
    not (p.rolsuper or p.rolbypassrls) as is_bound
from {schema}.roles as r
join pg_roles as p on p.rolname = r.role_name
where r.kind = 'tenant' and not p.rolcanlogin
order by 2 desc, 3 desc, 1
limit 1
