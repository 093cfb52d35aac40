-- audit: add a row to the trail of the tenant whose transaction this is. It commits with the
-- transaction.
--
-- In:     what was done; an object of JSON.
-- Out:    the row's id.
-- Rights: its owner's, because a tenant may not write to the table. The caller chooses neither
--         tenant nor time nor job: the tenant is current_org(), the job is that of the
--         transaction's fence (migration 0010).
create or replace function {schema}.audit(action text, details jsonb default '{{}}') returns uuid
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
    tenant uuid := {schema}.current_org();
    made uuid := {schema}.new_id();
    job uuid;
    execution uuid;
begin
    if tenant is null then
        raise exception 'no tenant is chosen, so nothing can be put into its trail'
            using errcode = 'PNQ02', hint = 'Call it in ctx.org.transaction(), or use audit_for(org_id, ...).';
    end if;
    perform {schema}.check_audit(audit.action, audit.details);
    select f.job_id, f.execution_id into job, execution from {schema}.fences as f where f.xact = pg_current_xact_id();
    insert into {schema}.org_audit (org_id, id, action, details, job_id, execution_id)
    values (tenant, made, audit.action, audit.details, job, execution);
    return made;
end
$$;

revoke all on function {schema}.audit(text, jsonb) from public;

-- audit_for: add a row to the trail of a named tenant, for a session that is not confined to one.
--
-- In:     id: the row's. If the trail has that row already, nothing is added. Null: a new one.
-- Rights: insert on org_audit, and select for a conflict.
create or replace function {schema}.audit_for(
    org_id uuid, action text, details jsonb default '{{}}', job_id uuid default null, execution_id uuid default null,
    id uuid default null)
returns uuid
language plpgsql volatile
as $$
#variable_conflict use_column
declare
    made uuid := coalesce(audit_for.id, {schema}.new_id());
begin
    if audit_for.org_id is null then
        raise exception 'a row of the trail needs a tenant' using errcode = 'PNQ02';
    end if;
    perform {schema}.check_audit(audit_for.action, audit_for.details);
    insert into {schema}.org_audit (org_id, id, action, details, job_id, execution_id)
    values (audit_for.org_id, made, audit_for.action, audit_for.details, audit_for.job_id, audit_for.execution_id)
    on conflict do nothing;
    return made;
end
$$;

-- check_audit: refuse what the table refuses, and say what fits.
create or replace function {schema}.check_audit(action text, details jsonb) returns void
language plpgsql immutable
as $$
begin
    if action is null or length(action) not between 1 and 200 then
        raise exception 'the action is not valid' using errcode = 'PNQ02', hint = 'Use 1 to 200 characters.';
    end if;
    if details is null or jsonb_typeof(details) <> 'object' or pg_column_size(details) > 65536 then
        raise exception 'the details of action % are not valid', quote_literal(left(action, 80))
            using errcode = 'PNQ02', hint = 'Use an object of JSON, of at most 65536 bytes.';
    end if;
end
$$;

-- prune_audit: delete old rows of the trail, the oldest first.
--
-- Out:    how many, at most `rows_max`.
-- Rights: select and delete on org_audit.
create or replace function {schema}.prune_audit(older_than_seconds double precision, rows_max integer default 10000) returns integer
language plpgsql volatile
as $$
declare
    before timestamptz;
    pruned integer;
    outer_word text := current_setting('pgnotifyq.prunes_audit', true);
begin
    if older_than_seconds not between 0 and 3155760000 or older_than_seconds is null then
        raise exception 'older_than_seconds % is out of range', older_than_seconds
            using errcode = 'PNQ02', hint = 'Use 0 to 3155760000, a hundred years.';
    end if;
    before := {schema}.clock() - make_interval(secs => older_than_seconds);
    perform set_config('pgnotifyq.prunes_audit', 'yes', true);
    delete from {schema}.org_audit as a
    where (a.org_id, a.id) in (
        select o.org_id, o.id from {schema}.org_audit as o where o.at < before order by o.id limit greatest(rows_max, 0));
    get diagnostics pruned = row_count;
    perform set_config('pgnotifyq.prunes_audit', coalesce(outer_word, ''), true);
    return pruned;
end
$$;
