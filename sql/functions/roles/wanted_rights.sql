-- wanted_rights: what each kind of role may do, and no more. `migrate` grants it, doctor and a
-- worker's start compare it with what is there, and a test walks the catalog: nothing is left out.
--
-- Out:    kind of role; `relation` or `function`; the object's name; one privilege; the columns
--         that it is for (`column_names`), null: all.
--
-- What is not in it is the owner's alone. Functions that run with the caller's rights may be called
-- by every role that may use the schema, and open nothing.
create or replace function {schema}.wanted_rights()
returns table (kind text, class text, object text, privilege text, column_names text[])
language sql stable
set search_path = pg_catalog, pg_temp
as $$
    with enqueued (columns) as (
        values ('{{org_id,queue_name,job_type,payload,priority,scheduled_at,max_attempts,unique_key,queue_not_said,headers,unique_scope,unique_while,unique_until}}'::text[])
    ), wanted (kind, object, privileges, columns) as (
        values
            ('producer', 'schema_migrations', '{{select}}'::text[], null::text[]),
            ('producer', 'roles', '{{select}}', null),
            ('tenant', 'roles', '{{select}}', null),
            ('worker', 'roles', '{{select}}', null),
            ('admin', 'roles', '{{select}}', null),
            ('observer', 'roles', '{{select}}', null),

            ('producer', 'jobs', '{{select}}', null),
            ('producer', 'jobs', '{{insert}}', (select '{{id,created_at}}'::text[] || e.columns from enqueued as e)),
            ('producer', 'jobs', '{{update}}', '{{status,awaited,error_message}}'),
            ('producer', 'job_executions', '{{select}}', null),
            ('producer', 'executions', '{{select}}', null),
            ('producer', 'dead_letter_jobs', '{{select}}', null),
            ('producer', 'handlers', '{{select}}', '{{job_type,queue_name,published_at}}'),

            ('tenant', 'jobs', '{{select}}', null),
            ('tenant', 'jobs', '{{insert}}', (select e.columns from enqueued as e)),
            ('tenant', 'jobs', '{{update}}', '{{status,awaited,error_message}}'),
            ('tenant', 'job_executions', '{{select}}', null),
            ('tenant', 'executions', '{{select}}', null),
            ('tenant', 'dead_letter_jobs', '{{select}}', null),
            ('tenant', 'job_troubles', '{{select}}', null),
            ('tenant', 'handlers', '{{select}}', '{{job_type,queue_name,published_at}}'),

            ('tenant', 'org_names', '{{select}}', null),
            ('tenant', 'org_config', '{{select}}', null),
            ('tenant', 'org_audit', '{{select}}', null),

            ('worker', 'schema_migrations', '{{select}}', null),
            ('worker', 'jobs', '{{select,insert,update,delete}}', null),
            ('worker', 'job_executions', '{{select,insert,delete}}', null),
            ('worker', 'job_executions', '{{update}}', '{{error_message}}'),
            ('worker', 'executions', '{{select}}', null),
            ('worker', 'dead_letter_jobs', '{{select,insert,delete}}', null),
            ('worker', 'dead_letter_jobs', '{{update}}', '{{payload,headers,saved,blanked_at}}'),
            ('worker', 'job_troubles', '{{select,insert,update,delete}}', null),
            ('worker', 'worker_heartbeats', '{{select,insert,update,delete}}', null),
            ('worker', 'handlers', '{{select,insert,update,delete}}', null),
            ('worker', 'sleepers', '{{select,insert,update,delete}}', null),
            ('worker', 'retention', '{{select}}', null),
            ('worker', 'pauses', '{{select}}', null),
            ('worker', 'hooks', '{{select,insert,delete}}', null),
            ('worker', 'schedules', '{{select,insert,update}}', null),
            ('worker', 'schedule_ticks', '{{select,insert,update,delete}}', null),
            ('worker', 'org_config', '{{select}}', null),
            ('worker', 'org_credentials', '{{select}}', null),
            ('worker', 'org_audit', '{{select,insert}}', null),

            ('producer', 'job_logs', '{{select}}', null),
            ('tenant', 'job_logs', '{{select}}', null),
            ('worker', 'job_logs', '{{select,insert,update,delete}}', null),
            ('worker', 'followers', '{{select}}', null),
            ('observer', 'job_logs', '{{select}}', null),
            ('observer', 'followers', '{{select}}', null),
            ('admin', 'job_logs', '{{select,delete}}', null),
            ('admin', 'followers', '{{select}}', null),

            ('observer', 'schema_migrations', '{{select}}', null),
            ('observer', 'jobs', '{{select}}', null),
            ('observer', 'job_executions', '{{select}}', null),
            ('observer', 'executions', '{{select}}', null),
            ('observer', 'dead_letter_jobs', '{{select}}', null),
            ('observer', 'job_troubles', '{{select}}', null),
            ('observer', 'worker_heartbeats', '{{select}}', null),
            ('observer', 'handlers', '{{select}}', null),
            ('observer', 'sleepers', '{{select}}', null),
            ('observer', 'retention', '{{select}}', null),
            ('observer', 'pauses', '{{select}}', null),
            ('observer', 'hooks', '{{select}}', null),
            ('observer', 'schedules', '{{select}}', null),
            ('observer', 'schedule_ticks', '{{select}}', null),

            ('admin', 'schema_migrations', '{{select}}', null),
            ('admin', 'jobs', '{{select,insert,update,delete}}', null),
            ('admin', 'job_executions', '{{select,delete}}', null),
            ('admin', 'executions', '{{select}}', null),
            ('admin', 'dead_letter_jobs', '{{select,delete}}', null),
            -- To lock a letter takes a right to update some column of it.
            ('admin', 'dead_letter_jobs', '{{update}}', '{{payload,headers,saved,blanked_at}}'),
            ('admin', 'job_troubles', '{{select,delete}}', null),
            ('admin', 'worker_heartbeats', '{{select}}', null),
            ('admin', 'handlers', '{{select}}', null),
            ('admin', 'sleepers', '{{select}}', null),
            ('admin', 'hooks', '{{select}}', null),
            ('admin', 'schedules', '{{select,insert,update,delete}}', null),
            ('admin', 'schedule_ticks', '{{select,insert,update,delete}}', null),
            ('admin', 'retention', '{{select,insert,update,delete}}', null),
            ('admin', 'pauses', '{{select,insert,update,delete}}', null),
            ('admin', 'org_names', '{{select,insert,delete}}', null),
            ('admin', 'org_config', '{{select,insert,update,delete}}', null),
            ('admin', 'org_credentials', '{{select,insert,update,delete}}', null),
            ('admin', 'org_audit', '{{select,insert,delete}}', null),

            ('worker', 'stack_requests', '{{select,insert,update,delete}}', null),
            ('admin', 'stack_requests', '{{select,insert,update,delete}}', null)
    ), callable (kind, object) as (
        values ('producer', 'fence(uuid, uuid)'), ('producer', 'meet_fence(uuid, uuid, text)'),
            ('producer', 'save(uuid, uuid, text)'), ('tenant', 'save(uuid, uuid, text)'), ('worker', 'save(uuid, uuid, text)'),
            ('producer', 'key_holder(uuid, text, text)'),
            ('producer', 'pass_key(uuid, text, text, text, text[], jsonb, timestamptz, smallint, double precision, uuid)'),
            ('producer', 'pass_keys(bigint[], uuid[], uuid[], text[], text[], jsonb[], jsonb[], timestamptz[], smallint[])'),
            ('producer', 'run_after(uuid[], uuid[])'),
            ('producer', 'lock_keys(uuid[], text[], text[])'),
            ('tenant', 'pass_key(uuid, text, text, text, text[], jsonb, timestamptz, smallint, double precision, uuid)'),
            ('tenant', 'pass_keys(bigint[], uuid[], uuid[], text[], text[], jsonb[], jsonb[], timestamptz[], smallint[])'),
            ('tenant', 'run_after(uuid[], uuid[])'),
            ('tenant', 'lock_keys(uuid[], text[], text[])'),
            ('worker', 'pass_key(uuid, text, text, text, text[], jsonb, timestamptz, smallint, double precision, uuid)'),
            ('worker', 'pass_keys(bigint[], uuid[], uuid[], text[], text[], jsonb[], jsonb[], timestamptz[], smallint[])'),
            ('worker', 'run_after(uuid[], uuid[])'),
            ('worker', 'lock_keys(uuid[], text[], text[])'),
            ('admin', 'pass_key(uuid, text, text, text, text[], jsonb, timestamptz, smallint, double precision, uuid)'),
            ('admin', 'pass_keys(bigint[], uuid[], uuid[], text[], text[], jsonb[], jsonb[], timestamptz[], smallint[])'),
            ('admin', 'run_after(uuid[], uuid[])'),
            ('admin', 'lock_keys(uuid[], text[], text[])'),
            ('tenant', 'fence(uuid, uuid)'), ('tenant', 'meet_fence(uuid, uuid, text)'), ('tenant', 'unsealed(text)'),
            ('tenant', 'audit(text, jsonb)'),
            ('worker', 'fence(uuid, uuid)'), ('worker', 'meet_fence(uuid, uuid, text)'), ('worker', 'tenant_key()'),
            ('worker', 'tenant_login()'), ('worker', 'forget_followers()')
        union all
        select k.name, f.name
        from unnest('{{producer,tenant,worker,admin,observer}}'::text[]) as k(name),
            unnest('{{"follow(uuid, uuid, double precision)","unfollow(uuid)"}}'::text[]) as f(name)
        union all
        select k.name, 'follow_events(uuid, text, uuid, double precision)'
        from unnest('{{tenant,worker,admin,observer}}'::text[]) as k(name)
    )
    -- If the schema is older than a column, that column is left out.
    select w.kind, 'relation', w.object, p.name, case when w.columns is not null then array(
        select a.attname::text from pg_attribute as a
        where a.attrelid = to_regclass('{schema}.' || w.object) and a.attname = any (w.columns) and not a.attisdropped
        order by a.attnum) end
    from wanted as w, unnest(w.privileges) as p(name)
    union all
    select c.kind, 'function', c.object, 'execute', null from callable as c
$$;
