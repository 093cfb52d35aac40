-- requeue: bring a dead letter back as the job it was: same id, tenant, queue, priority, payload,
-- headers and key, attempts at zero.
--
-- In:     delay_seconds  how long it is not due from now on
-- Out:    true when it was restored, false when there is no such dead letter. A unique_key that an
--         unfinished job holds meanwhile is an error (unique_violation), as is a job that has its
--         id, and the dead letter stays.
-- Errors: PNQ01: its payload was blanked (prune_letters), so the job that it was cannot be made.
-- Locks:  the dead letter: of two who requeue, one wins.
--
-- The earlier form is dropped. Otherwise a call without the last argument would fit both.
drop function if exists {schema}.requeue(uuid);
create or replace function {schema}.requeue(job_id uuid, delay_seconds double precision default 0) returns boolean
language plpgsql volatile
set jit = off
set enable_seqscan = off
set enable_bitmapscan = off
as $$
begin
    with letter as (
        delete from {schema}.dead_letter_jobs as d where d.id = requeue.job_id and d.blanked_at is null returning d.*
    )
    insert into {schema}.jobs (
        id, org_id, queue_name, job_type, payload, priority, scheduled_at, max_attempts, unique_key, created_at, error_message,
        enqueued_by, headers)
    select l.id, l.org_id, l.queue_name, l.job_type, l.payload, l.priority,
        {schema}.clock() + make_interval(secs => requeue.delay_seconds), l.max_attempts, l.unique_key, l.created_at,
        l.error_message, l.enqueued_by, l.headers
    from letter as l;
    if found then
        return true;
    end if;
    if exists (select from {schema}.dead_letter_jobs as d where d.id = requeue.job_id and d.blanked_at is not null) then
        raise exception 'the payload of dead letter % was blanked', requeue.job_id
            using errcode = 'PNQ01', hint = 'Its payload is not kept any more (retention). Enqueue the job anew.';
    end if;
    return false;
end
$$;
