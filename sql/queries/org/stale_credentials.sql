-- stale_credentials: credentials that another key than this one has sealed, in order, a batch at a
-- time. In: the key; the tenant and name to go on after; limit.
select c.org_id, c.name::text, c.key_id, c.sealed
from {schema}.org_credentials as c
where c.key_id <> $1 and (c.org_id, c.name::text) > ($2::uuid, $3::text)
order by c.org_id, c.name::text
limit $4
