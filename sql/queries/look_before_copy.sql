-- look_before_copy: what a client has to know before it copies jobs into the table.
-- In: $1 the job types of jobs that name no queue.
-- Out: the time; whether this role may copy (PostgreSQL denies COPY to a role that row security
--      binds); the queues of those types, in order.
select {schema}.clock(), not row_security_active(({schema_text} || '.jobs')::regclass),
    (select array_agg({schema}.queue_of(t.name) order by t.place) from unnest($1::text[]) with ordinality as t(name, place))
