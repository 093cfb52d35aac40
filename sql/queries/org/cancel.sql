-- cancel: ask a job of a tenant to stop. Of another tenant's it says `unknown`, as of one that
-- never was. In: tenant, job, why.
select {schema}.cancel({schema}.of_org($1::uuid, $2::uuid), $3::text)
