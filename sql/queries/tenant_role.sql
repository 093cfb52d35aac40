-- tenant_role: what the role that confines tenants is worth to the connected one. One row, or none
-- where the role does not exist.
-- Out: whether it may be taken on. Since PostgreSQL 16 a member may be one without that right.
-- Out: whether it may look into the schema at all. One that was made after the schema has no rights
--      there until `migrate` grants them.
-- Out: whether row security binds it.
select
    pg_has_role(current_user, r.oid, case when current_setting('server_version_num')::integer >= 160000 then 'SET' else 'MEMBER' end)
        as may_be_set,
    coalesce(has_schema_privilege(r.oid, to_regnamespace({schema_text}), 'usage'), false)
        and coalesce(has_table_privilege(r.oid, to_regclass('{schema}.jobs'), 'select'), false)
        and coalesce(has_table_privilege(r.oid, to_regclass('{schema}.jobs'), 'insert'), false) as has_rights,
    not (r.rolsuper or r.rolbypassrls) as is_bound
from pg_roles as r
where r.rolname = {tenant_role_text}
