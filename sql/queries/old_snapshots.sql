-- old_snapshots: who keeps vacuum from removing dead rows, the oldest first. A queue slows down while anybody does.
select a.pid, coalesce(a.application_name, '') as application_name, coalesce(a.usename, '') as role_name, a.state,
    extract(epoch from now() - coalesce(a.xact_start, a.query_start))::float8 as seconds
from pg_stat_activity as a
where (a.backend_xmin is not null or a.backend_xid is not null) and a.pid <> pg_backend_pid() and a.backend_type = 'client backend'
order by coalesce(a.xact_start, a.query_start)
limit 5
