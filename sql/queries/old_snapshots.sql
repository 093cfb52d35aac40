-- old_snapshots: the transactions that keep vacuum from removing dead rows, the oldest first. A
-- queue slows down while there is one. A prepared transaction has no session; its name says whose
-- it is. Replication slots are left out: we could not tell their age.
(
    select 'session' as kind, a.pid::text as name, coalesce(a.application_name, '') as application_name,
        coalesce(a.usename, '')::text as role_name, a.state, extract(epoch from now() - coalesce(a.xact_start, a.query_start))::float8 as seconds
    from pg_stat_activity as a
    where (a.backend_xmin is not null or a.backend_xid is not null) and a.pid <> pg_backend_pid() and a.backend_type = 'client backend'
    order by coalesce(a.xact_start, a.query_start)
    limit 5
)
union all
(
    select 'prepared', p.gid, '', p.owner::text, 'prepared', extract(epoch from now() - p.prepared)::float8
    from pg_prepared_xacts as p
    where p.database = current_database()
    order by p.prepared
    limit 5
)
