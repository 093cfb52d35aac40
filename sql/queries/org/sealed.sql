-- sealed: the sealed credentials of a tenant.
select c.org_id, c.name::text, c.key_id, c.sealed from {schema}.org_credentials as c where c.org_id = $1
