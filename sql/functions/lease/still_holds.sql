-- still_holds: the fence of a handler's own transaction. Locks the job's row until that transaction
-- ends, so that what it wrote commits only while the execution is still the owner.
-- Out: 'held', 'cancelled' or 'lost'.
--
-- What is left of the transaction is an outcome and the commit. A process that is frozen just there
-- keeps the row locked for as long as it is frozen, for its kernel still answers; and reclaim,
-- which passes over locked rows, would pass over this job until then. So the server ends a session
-- that is idle from here on for longer than any that lives.
create or replace function {schema}.still_holds(job_id uuid, execution_id uuid) returns text
language plpgsql volatile
set jit = off
set enable_seqscan = off
set enable_bitmapscan = off
as $$
declare
    found_status text;
begin
    perform set_config('idle_in_transaction_session_timeout', '5s', true);
    select j.status into found_status
    from {schema}.jobs as j
    where j.id = still_holds.job_id and j.current_execution_id = still_holds.execution_id
    for no key update;
    return case when not found then 'lost' when found_status = 'cancelled' then 'cancelled' else 'held' end;
end
$$;
