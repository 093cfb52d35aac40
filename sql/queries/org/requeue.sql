-- requeue: bring a dead letter of a tenant back. In: tenant, job, whether without what its handler
-- had saved. Out: whether there was one.
select {schema}.requeue({schema}.of_org($1::uuid, $2::uuid), 0, $3::boolean)
