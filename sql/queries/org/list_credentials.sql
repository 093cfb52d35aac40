-- list_credentials: which credentials there are, by tenant and name, and not what they are. In:
-- tenant, which may be null; limit.
select c.org_id, n.name as org, c.name::text, c.key_id, c.changed_at, c.changed_by
from {schema}.org_credentials as c left join {schema}.org_names as n on n.org_id = c.org_id
where ($1::uuid is null or c.org_id = $1)
order by coalesce(n.name, c.org_id::text), c.name
limit $2
