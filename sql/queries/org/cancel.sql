-- cancel: ask a job of a tenant to stop. For another tenant's job it says `unknown`, as for one
-- that never was. In: tenant, job, why.
select {schema}.cancel({schema}.of_org($1::uuid, $2::uuid), $3::text)
