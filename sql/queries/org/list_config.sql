-- list_config: settings, by tenant and name. Every filter may be null. In: tenant, name, limit.
select c.org_id, n.name as org, c.name, c.value, c.changed_at, c.changed_by
from {schema}.org_config as c left join {schema}.org_names as n on n.org_id = c.org_id
where ($1::uuid is null or c.org_id = $1) and ($2::text is null or c.name = $2)
order by coalesce(n.name, c.org_id::text), c.name
limit $3
