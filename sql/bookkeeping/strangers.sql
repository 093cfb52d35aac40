-- strangers: tables of our names in a schema that is not ours. In: $1 the schema's name.
select c.relname
from pg_class as c join pg_namespace as n on n.oid = c.relnamespace
where n.nspname = $1::text and c.relname in ('schema_migrations', 'jobs')
order by 1 desc
