-- doctor: the facts that doctor judges, in one row.
select
    current_setting('server_version') as server_version,
    current_user as role_name,
    (select r.rolsuper from pg_roles as r where r.rolname = current_user) as is_superuser,
    (select r.rolbypassrls from pg_roles as r where r.rolname = current_user) as bypasses_row_security,
    exists (select from pg_roles as r where r.rolname = {tenant_role_text}) as has_tenant_role,
    has_table_privilege(current_user, '{schema}.jobs', 'insert, update, delete') as can_write,
    pg_is_in_recovery() as is_standby,
    current_setting('autovacuum') = 'on' as has_autovacuum,
    pg_notification_queue_usage() as notification_queue_usage,
    (select count(*) from {schema}.worker_heartbeats) as workers,
    (select count(*) from {schema}.worker_heartbeats as w where not w.has_session) as polling_workers,
    (select extract(epoch from now() - min(j.scheduled_at))::float8 from {schema}.jobs as j
     where j.is_claimable and j.scheduled_at <= now()) as oldest_due_seconds,
    (select count(*) from {schema}.dead_letter_jobs) as dead_letters,
    (select s.n_dead_tup::float8 / greatest(s.n_live_tup + s.n_dead_tup, 1) from pg_stat_user_tables as s
     where s.relid = '{schema}.jobs'::regclass) as dead_row_share,
    (select s.n_dead_tup from pg_stat_user_tables as s where s.relid = '{schema}.jobs'::regclass) as dead_rows
