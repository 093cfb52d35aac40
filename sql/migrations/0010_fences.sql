-- Fences: a handler's own transaction cannot commit unless its execution still holds the job, whoever says `commit`.
--
-- A handler has a connection, so it can commit by hand, in the middle of the block that is fenced at its end. So the fence is part of
-- the commit itself: the transaction begins with a row here, and the row's deferred trigger asks when the transaction commits.
--
-- `set constraints ... immediate` does not disarm it. What is asked early locks the job's row, so the answer holds until the
-- transaction ends. Rolled back to a savepoint, the lock is gone, and PostgreSQL asks again.

-- One row a handler's transaction under way; seen by nobody, for it is gone with the commit. Unlogged: a crash ends all transactions.
create unlogged table {schema}.fences (
    -- The transaction's own id, so that it is known again: after `commit and chain` there is another.
    xact xid8 not null,
    job_id uuid not null,
    execution_id uuid not null,

    constraint fences_pkey primary key (xact)
);

-- The owner's rights and no tenant: at the commit the session may be confined. Whoever inserted the row may have had none of either.
create function {schema}.check_fence() returns trigger
language plpgsql security definer
set search_path = pg_catalog, pg_temp
set jit = off
set enable_seqscan = off
set enable_bitmapscan = off
as $$
declare
    held text;
    tenant text := current_setting('pgnotifyq.org_id', true);
begin
    -- Gone: the end of the block has asked already, and locked the job's row.
    delete from {schema}.fences as f where f.xact = new.xact;
    if not found then
        return null;
    end if;
    if current_query() ~* 'prepare\s+transaction' then
        -- It would keep the job's row locked for as long as nobody remembers it.
        raise exception 'the transaction of job % cannot be prepared: it commits with its execution, or not at all', new.job_id
            using errcode = 'PNQ03', detail = 'prepared';
    end if;
    perform set_config('pgnotifyq.org_id', '', true);
    held := {schema}.still_holds(new.job_id, new.execution_id);
    perform set_config('pgnotifyq.org_id', coalesce(tenant, ''), true);
    if held <> 'held' then
        raise exception 'execution % no longer owns job %; the transaction was rolled back', new.execution_id, new.job_id
            using errcode = 'PNQ03', detail = held;
    end if;
    return null;
end
$$;
revoke all on function {schema}.check_fence() from public;

create constraint trigger fence_holds_at_commit after insert on {schema}.fences
deferrable initially deferred for each row execute function {schema}.check_fence();
