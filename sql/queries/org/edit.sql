-- edit: change a job of a tenant that waits. For another tenant's job it says `unknown`, as for one
-- that never was. In: tenant, job, queue, priority, time, delay, payload.
select {schema}.edit(
    {schema}.of_org($1::uuid, $2::uuid), $3::text, $4::integer, $5::timestamptz, $6::float8, $7::jsonb)
