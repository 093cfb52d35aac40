-- delete_credential: take a credential away. In: tenant, name. Out: how many were there.
with gone as (
    delete from {schema}.org_credentials as c where c.org_id = $1 and c.name = $2 returning c.name
)
select count(*) from gone
