-- still_holds: the fence of a handler's own transaction. Locks the job's row until that transaction
-- ends, so that what it wrote commits only while the execution is still the owner.
-- Out: 'held', 'cancelled' or 'lost'.
--
-- After this, the transaction only writes an outcome and commits. If a process is frozen just
-- there, it keeps the row locked as long as it is frozen, because its kernel still answers. reclaim
-- passes over locked rows, so it would pass over this job until then. So the server ends a session
-- that is idle from here on for longer than any session that lives.
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
