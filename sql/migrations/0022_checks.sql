-- What a job's row promises, said shorter. The promises are the same.
--
-- PostgreSQL keeps a CHECK as text, and each statement that inserts or updates reads that text
-- anew. The checks of this table were 42 of 100 parts of an insert of one job by a prepared
-- statement. What such a text costs grows with its columns and operators, and with each byte of a
-- constant. So the columns that are generated say what they can: `is_claimable` is that the status
-- is pending, `is_held` that there is an execution.
--
-- The rows that are there obeyed the rules of before, which are these rules. So they are not read
-- again, and each lock is for a moment. What the release before says and asks goes on.
alter table {schema}.jobs
    drop constraint status_is_known,
    drop constraint running_has_lease,
    drop constraint finished_has_time,
    drop constraint lease_is_whole,
    drop constraint attempts_within_maximum,
    drop constraint pending_has_an_attempt_left,
    -- No other status is known than these four. A cancelled job keeps its lease while its handler
    -- is stopping; it is cleared when the handler has ended.
    add constraint status_fits_lease_and_end check (
        status = case
            when completed_at is null then case when is_held then 'running' else 'pending' end
            when is_held or status = 'cancelled' then 'cancelled'
            else 'completed'
        end) not valid,
    -- All three, or none.
    add constraint lease_is_whole check (num_nulls(current_execution_id, locked_by, lease_expires_at) % 3 = 0) not valid,
    -- A pending job has one left.
    add constraint attempts_within_maximum check (
        attempts >= 0 and attempts + is_claimable::integer <= coalesce(max_attempts, 1000)) not valid;
