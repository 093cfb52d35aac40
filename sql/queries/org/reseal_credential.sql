-- reseal_credential: put a credential that is sealed anew in the place of the old one, unless that
-- was changed since it was read. In: tenant, name, what was read; key, what is sealed now. Out: how
-- many: 1, or 0 if it was changed meanwhile.
with done as (
    update {schema}.org_credentials as c set key_id = $4, sealed = $5
    where c.org_id = $1 and c.name = $2 and c.sealed = $3
    returning c.name
)
select count(*) from done
