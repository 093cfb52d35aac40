-- doctor: the facts that doctor judges, in one row.
--
-- Rights are asked for one by one: of a list, has_table_privilege says whether *any* of them is
-- held.
with workers as materialized (
    select w.has_session, {schema}.is_alive(w.worker_id) as is_alive from {schema}.worker_heartbeats as w
), needed as (
    select n.name, n.wanted
    from (values ('jobs', '{{select,insert,update,delete}}'::text[]), ('job_executions', '{{select,insert,delete}}'),
        ('dead_letter_jobs', '{{select,insert,delete}}'), ('worker_heartbeats', '{{select,insert,update,delete}}'),
        ('sleepers', '{{select,insert,update,delete}}'), ('job_troubles', '{{select,insert,update,delete}}'),
        ('handlers', '{{select,insert,update,delete}}'), ('hooks', '{{select,insert,delete}}'), ('retention', '{{select}}'),
        ('pauses', '{{select}}'), ('followers', '{{select}}'), ('job_logs', '{{select,insert,update,delete}}'),
        ('schedules', '{{select,insert,update}}'), ('schedule_ticks', '{{select,insert,update,delete}}'),
        ('stack_requests', '{{select,insert,update,delete}}')) as n(name, wanted)
)
select
    current_setting('server_version') as server_version,
    current_user::text as role_name,
    (select r.rolsuper from pg_roles as r where r.rolname = current_user) as is_superuser,
    (select r.rolbypassrls from pg_roles as r where r.rolname = current_user) as bypasses_row_security,
    (select concat_ws(', ', string_agg(p.wanted || ' on ' || n.name, ', ' order by n.name, p.wanted),
         case when not (select bool_and(has_column_privilege(current_user, '{schema}.dead_letter_jobs', c.name, 'update'))
                        from unnest(array['payload', 'headers', 'saved', 'blanked_at']) as c(name))
             then 'update (payload, headers, saved, blanked_at) on dead_letter_jobs' end)
     from needed as n, unnest(n.wanted) as p(wanted)
     where not has_table_privilege(current_user, '{schema}.' || n.name, p.wanted)) as rights_missing,
    (select count(*) from pg_proc as p
     where p.pronamespace = to_regnamespace({schema_text}) and p.prorettype <> 'trigger'::regtype
       and (not p.prosecdef or p.proname in ('fence', 'meet_fence', 'save'))
       and not has_function_privilege(current_user, p.oid, 'execute'))
        as functions_refused,
    current_setting('transaction_read_only') = 'on' as is_read_only,
    pg_is_in_recovery() as is_standby,
    current_setting('autovacuum') = 'on' as has_autovacuum,
    pg_notification_queue_usage() as notification_queue_usage,
    (select r.rolname::text from pg_class as c join pg_roles as r on r.oid = c.relowner
     where c.oid = '{schema}.jobs'::regclass) as owner_name,
    (select r.rolsuper or r.rolbypassrls from pg_class as c join pg_roles as r on r.oid = c.relowner
     where c.oid = '{schema}.jobs'::regclass) as is_owner_exempt,
    pg_has_role(current_user, 'pg_read_all_stats', 'usage') as sees_all_sessions,
    (select count(*) from workers as w where w.is_alive) as workers,
    (select count(*) from workers as w where not w.is_alive) as workers_gone,
    (select count(*) from workers as w where w.is_alive and not w.has_session) as polling_workers,
    (select count(*) from {schema}.jobs as j where j.is_held and j.lease_expires_at < now()) as leases_overdue,
    (select count(*) from {schema}.dead_letter_jobs) as dead_letters,
    (select s.n_dead_tup::float8 / greatest(s.n_live_tup + s.n_dead_tup, 1) from pg_stat_user_tables as s
     where s.relid = '{schema}.jobs'::regclass) as dead_row_share,
    (select s.n_dead_tup from pg_stat_user_tables as s where s.relid = '{schema}.jobs'::regclass) as dead_rows
