-- edit: change a job of a tenant that waits. Of another tenant's it says `unknown`, as of one that
-- never was. In: tenant, job, queue, priority, time, delay, payload.
select {schema}.edit(
    {schema}.of_org($1::uuid, $2::uuid), $3::text, $4::integer, $5::timestamptz, $6::float8, $7::jsonb)
