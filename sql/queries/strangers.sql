-- strangers: what others have put on our tables, and what of ours was switched off. One row a
-- thing, by kind.
with ours as materialized (
    select c.oid, c.relname::text as name, c.relrowsecurity, c.relforcerowsecurity, coalesce(c.reloptions, '{{}}') as options
    from pg_class as c
    where c.relnamespace = to_regnamespace({schema_text}) and c.relkind = 'r'
)
select 'foreign_key' as kind, o.name as table_name, k.conname::text as name, k.conrelid::regclass::text as of_table,
    case k.confdeltype when 'c' then 'cascade' when 'n' then 'set null' when 'd' then 'set default' else 'restrict' end as does
from pg_constraint as k join ours as o on o.oid = k.confrelid
where k.contype = 'f' and k.conparentid = 0 and k.conrelid not in (select m.oid from ours as m)
union all
select 'trigger', o.name, t.tgname::text, t.tgfoid::regproc::text, ''
from pg_trigger as t join ours as o on o.oid = t.tgrelid join pg_proc as p on p.oid = t.tgfoid
where not t.tgisinternal and p.pronamespace <> to_regnamespace({schema_text}) and t.tgenabled <> 'D'
union all
select 'trigger_off', o.name, t.tgname::text, '', ''
from pg_trigger as t join ours as o on o.oid = t.tgrelid join pg_proc as p on p.oid = t.tgfoid
where not t.tgisinternal and p.pronamespace = to_regnamespace({schema_text}) and t.tgenabled not in ('O', 'A')
union all
select 'rule', o.name, r.rulename::text, '', ''
from pg_rewrite as r join ours as o on o.oid = r.ev_class
union all
select 'policy', o.name, p.polname::text, '', case when p.polpermissive then 'permissive' else 'restrictive' end
from pg_policy as p join ours as o on o.oid = p.polrelid
where p.polname not in ('one_tenant', 'own_jobs', 'as_enqueued', 'as_cancelled')
union all
select 'row_security_off', o.name, '', '', ''
from ours as o
where (not o.relrowsecurity or not o.relforcerowsecurity)
  and exists (select from pg_policy as p where p.polrelid = o.oid and p.polname = 'one_tenant')
union all
select 'policy_gone', o.name, 'one_tenant', '', ''
from ours as o
where o.name in ('jobs', 'job_executions', 'dead_letter_jobs', 'job_troubles', 'org_names', 'org_config', 'org_credentials', 'org_audit')
  and not exists (select from pg_policy as p where p.polrelid = o.oid and p.polname = 'one_tenant')
union all
select 'autovacuum_off', o.name, '', '', ''
from ours as o
where exists (select from unnest(o.options) as x(option) where lower(x.option) in ('autovacuum_enabled=false', 'autovacuum_enabled=off',
    'autovacuum_enabled=no', 'autovacuum_enabled=0', 'autovacuum_enabled=f'))
order by 1, 2, 3
