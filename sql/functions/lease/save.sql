-- save: keep the state of an execution, for the execution that runs its job next. Fenced; a
-- heap-only update. It is durable, because the handler goes on as if what came before were done.
--
-- In:     saved  JSON text; null: there is no state any more
-- Out:    false when the execution no longer holds the job; nothing was written.
-- Errors: check_violation: the state is too large (the domain `saved`).
-- Locks:  the job.
-- Index:  jobs_pkey.
-- Rights: its owner's, as meet_fence: a handler's own transaction saves with its commit, and its
--         role needs no right to the jobs. The caller must know the execution's id.
create or replace function {schema}.save(job_id uuid, execution_id uuid, saved text) returns boolean
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
set jit = off
set enable_seqscan = off
set enable_bitmapscan = off
as $$
#variable_conflict use_column
declare
    written integer;
    tenant text := current_setting('pgnotifyq.org_id', true);
begin
    perform set_config('pgnotifyq.org_id', '', true);
    update {schema}.jobs as j
    set saved = save.saved::jsonb
    where j.id = save.job_id and j.current_execution_id = save.execution_id;
    get diagnostics written = row_count;
    perform set_config('pgnotifyq.org_id', coalesce(tenant, ''), true);
    return written > 0;
end
$$;
revoke all on function {schema}.save(uuid, uuid, text) from public;
