-- of_org: whether a job, or a dead letter, is a tenant's. In: tenant, job.
select {schema}.of_org($1::uuid, $2::uuid) is not null
