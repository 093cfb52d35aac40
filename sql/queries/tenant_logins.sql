-- tenant_logins: the logins that are tenants', by name.
select p.rolname::text as name
from {schema}.roles as r
join pg_roles as p on p.rolname = r.role_name
where r.kind = 'tenant' and p.rolcanlogin
order by 1
