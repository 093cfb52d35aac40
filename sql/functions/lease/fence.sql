-- fence: begin a handler's own transaction. From here on the transaction commits only if the
-- execution holds the job (migration 0010).
--
-- Out:    the transaction's id, for meet_fence.
-- Rights: its owner's, so that a worker's role needs no rights on the table. A role that calls it
--         binds only a transaction of its own. `migrate` grants it to the roles that may use the
--         schema.
create or replace function {schema}.fence(job_id uuid, execution_id uuid) returns text
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
begin
    insert into {schema}.fences (xact, job_id, execution_id) values (pg_current_xact_id(), fence.job_id, fence.execution_id);
    return pg_current_xact_id()::text;
end
$$;
revoke all on function {schema}.fence(uuid, uuid) from public;

-- meet_fence: the end of the block. It asks now what the commit would ask, so that an outcome can
-- be written behind the answer. From here on the job's row is locked, and the commit asks nothing
-- any more.
--
-- In:     the transaction's id, as `fence` said it.
-- Out:    'held', 'cancelled' or 'lost'; or 'left': this is another transaction, because the
--         handler has ended the first one by hand.
-- Locks:  the job's row.
--
-- set_config takes the tenant off and puts it back. The naive `set pgnotifyq.org_id` at the
-- function's head needs a superuser to create the function.
create or replace function {schema}.meet_fence(job_id uuid, execution_id uuid, begun_in text) returns text
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
set jit = off
set enable_seqscan = off
set enable_bitmapscan = off
as $$
#variable_conflict use_column
declare
    held text;
    tenant text := current_setting('pgnotifyq.org_id', true);
begin
    if pg_current_xact_id_if_assigned()::text is distinct from begun_in then
        return 'left';
    end if;
    perform set_config('pgnotifyq.org_id', '', true);
    held := {schema}.still_holds(meet_fence.job_id, meet_fence.execution_id);
    perform set_config('pgnotifyq.org_id', coalesce(tenant, ''), true);
    if held = 'held' then
        delete from {schema}.fences as f where f.xact = pg_current_xact_id();
    end if;
    return held;
end
$$;
revoke all on function {schema}.meet_fence(uuid, uuid, text) from public;
