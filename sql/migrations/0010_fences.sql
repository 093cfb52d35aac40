-- Fences: a handler's own transaction commits only if its execution still holds the job, whichever
-- code says `commit`.
--
-- A handler has a connection. So it can commit by hand, in the middle of a block that is fenced at
-- its end. So the fence is part of the commit itself. The transaction begins with a row here. When
-- it commits, the row's deferred trigger asks whether the execution holds the job.
--
-- `set constraints ... immediate` does not disarm the fence. If the trigger asks early, it locks
-- the job's row, so its answer holds until the transaction ends. If the transaction rolls back to a
-- savepoint before that, the lock is gone, and PostgreSQL asks again.

-- One row for each transaction of a handler under way. Nobody sees it: it is gone with the commit.
-- The table is unlogged, for a crash ends all transactions.
create unlogged table {schema}.fences (
    -- The id of the transaction, to know it again: after `commit and chain` there is another one.
    xact xid8 not null,
    job_id uuid not null,
    execution_id uuid not null,

    constraint fences_pkey primary key (xact)
);

-- It runs with the owner's rights and without a tenant. At the commit the session may be confined
-- to one. The role that inserted the row may have had neither.
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
    -- If the row is gone, the end of the block has asked already, and has locked the job's row.
    delete from {schema}.fences as f where f.xact = new.xact;
    if not found then
        return null;
    end if;
    if current_query() ~* 'prepare\s+transaction' then
        -- A prepared transaction would keep the job's row locked until a person remembers it.
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
