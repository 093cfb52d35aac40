-- enqueue_unique: a batch of jobs, some of which have unique keys: see
-- functions/enqueue/enqueue_unique.sql. An empty text stands for null: see insert_jobs.sql.
select * from {schema}.enqueue_unique($1::uuid[], $2::uuid[], array_replace($3::text[], '', null), $4::text[], $5::text[], $6::smallint[],
    array_replace($7::text[], '', null)::timestamptz[], array_replace($8::text[], '', null)::float8[],
    array_replace($9::text[], '', null)::integer[], array_replace($10::text[], '', null), array_replace($11::text[], '', null),
    array_replace($12::text[], '', null))
