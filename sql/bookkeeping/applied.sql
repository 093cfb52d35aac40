-- applied: what is noted of each version. oldest_code came with version 9, so it is not named.
select m.version, m.digest, (to_jsonb(m) ->> 'oldest_code')::integer from {schema}.schema_migrations as m
