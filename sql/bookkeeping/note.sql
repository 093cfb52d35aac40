-- note: a step was applied. In: $1 version, $2 name, $3 digest, $4 the oldest code that may run.
insert into {schema}.schema_migrations (version, name, digest, oldest_code)
values ($1::integer, $2::text, $3::text, $4::integer)
on conflict (version) do update set digest = excluded.digest, oldest_code = excluded.oldest_code,
    applied_at = clock_timestamp();
