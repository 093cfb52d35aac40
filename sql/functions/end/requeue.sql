-- requeue: bring a dead letter back as the job it was: same id, tenant, queue, priority, payload,
-- headers, key and saved state, attempts at zero.
--
-- In:     delay_seconds  how long it is not due from now on
--         from_start     without what its handler had saved
-- Out:    true when it was restored, false when there is no such dead letter. A unique_key that an
--         unfinished job holds meanwhile is an error (unique_violation), as is a job that has its
--         id, and the dead letter stays.
-- Locks:  the dead letter: of two who requeue, one wins.
--
-- The earlier forms are dropped. Otherwise a call without the last arguments would fit all.
drop function if exists {schema}.requeue(uuid);
drop function if exists {schema}.requeue(uuid, double precision);
create or replace function {schema}.requeue(
    job_id uuid, delay_seconds double precision default 0, from_start boolean default false)
returns boolean
language plpgsql volatile
set jit = off
set enable_seqscan = off
set enable_bitmapscan = off
as $$
begin
    with letter as (
        delete from {schema}.dead_letter_jobs as d where d.id = requeue.job_id returning d.*
    )
    insert into {schema}.jobs (
        id, org_id, queue_name, job_type, payload, priority, scheduled_at, max_attempts, unique_key, created_at, error_message,
        enqueued_by, headers, saved)
    select l.id, l.org_id, l.queue_name, l.job_type, l.payload, l.priority,
        {schema}.clock() + make_interval(secs => requeue.delay_seconds), l.max_attempts, l.unique_key, l.created_at,
        l.error_message, l.enqueued_by, l.headers, case when not requeue.from_start then l.saved end
    from letter as l;
    return found;
end
$$;
