-- settle_one: end one execution in the way that `kind` says. It is for functions that end
-- executions of all kinds one after the other: settle_apart; and reclaim, which writes what a
-- worker could not write.
--
-- In:     kind (complete, retry, snooze, release, cancel, bury), the outcome for the history, delay
--         in seconds (retry, snooze), error message, result (JSON text), reason of death (bury).
-- Out:    null: it ended as asked. Else the surprise, as complete, give_back, stop and bury tell
--         it.
-- Errors: as of bury.
-- Locks:  the job.
create or replace function {schema}.settle_one(
    worker_id uuid, job_id uuid, execution_id uuid, kind text, outcome text, delay_seconds double precision,
    error_message text, result text, reason text)
returns text
language plpgsql volatile
as $$
declare
    job_ids constant uuid[] := array[job_id];
    execution_ids constant uuid[] := array[execution_id];
    error_messages constant text[] := array[error_message];
    told text;
begin
    case kind
        when 'complete' then
            select s.became into told
            from {schema}.complete(worker_id, job_ids, execution_ids, array[result], error_messages) as s;
        when 'cancel' then
            select s.became into told from {schema}.stop(worker_id, job_ids, execution_ids, error_messages) as s;
        when 'bury' then
            select s.became into told
            from {schema}.bury(worker_id, job_ids, execution_ids, array[outcome], error_messages, array[reason]) as s;
        when 'retry', 'snooze', 'release' then
            select s.became into told
            from {schema}.give_back(
                worker_id, job_ids, execution_ids, array[kind], array[outcome], array[delay_seconds], error_messages) as s;
        else
            raise exception 'an execution cannot end by %', coalesce(kind, 'null') using errcode = 'invalid_parameter_value';
    end case;
    return told;
end
$$;

-- settle: end a batch of executions, each in its own way. Only workers of before version 11 call
-- it. It goes when they may not run on this schema any more (`OLDEST_CODE` in
-- pgnotifyq/ledger/schema.py). In and out as of settle_one, in arrays of one length, in job id
-- order.
create or replace function {schema}.settle(
    worker_id uuid, job_ids uuid[], execution_ids uuid[], kinds text[], outcomes text[], delays double precision[],
    error_messages text[], results text[], reasons text[])
returns table (job_id uuid, became text)
language sql volatile
as $$
    select s.job_id, s.became
    from (
        select e.job_id, {schema}.settle_one(
            settle.worker_id, e.job_id, e.execution_id, e.kind, e.outcome, e.delay_seconds, e.error_message, e.result, e.reason) as became
        from unnest(job_ids, execution_ids, kinds, outcomes, delays, error_messages, results, reasons)
            as e(job_id, execution_id, kind, outcome, delay_seconds, error_message, result, reason)
        offset 0
    ) as s
    where s.became is not null
$$;
