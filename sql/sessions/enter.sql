-- enter: set what a session of ours needs, where the server has it and says otherwise.
--
-- In:     $1 the backend's number, as the connection was told it; $2 settings and their values, a
--         JSON object; $3 whether the session is for statements of ours.
-- Out:    whether transactions are read-only; how many settings had to be set.
--
-- If a pooler stands between, `pg_backend_pid` differs from what the connection was told. Then
-- nothing is set.
--
-- synchronous_commit: an outcome that was acknowledged must be durable. A session that has chosen
-- more than `on` keeps it.
--
-- search_path: if it names pg_catalog behind other schemas, their functions and operators would
-- stand in for the server's. So pg_catalog is put first. The rest stays, for the sake of users'
-- triggers.
select pg_catalog.current_setting('transaction_read_only'), pg_catalog.count(pg_catalog.set_config(name, value, false))
from (
    select name, value from pg_catalog.jsonb_each_text($2::pg_catalog.jsonb) as wanted (name, value)
    union all
    select 'synchronous_commit', 'on'
    where $3::pg_catalog.bool and pg_catalog.current_setting('synchronous_commit') operator(pg_catalog.=) 'off'
    union all
    select 'search_path', pg_catalog.concat('pg_catalog, ', pg_catalog.current_setting('search_path'))
    where $3::pg_catalog.bool and (pg_catalog.current_schemas(true))[1] operator(pg_catalog.<>) 'pg_catalog'
) as settings
where $1::pg_catalog.int4 operator(pg_catalog.=) pg_catalog.pg_backend_pid()
    and not pg_catalog.current_setting(name, true) operator(pg_catalog.=) value
