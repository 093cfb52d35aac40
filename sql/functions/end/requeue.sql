-- requeue: bring a dead letter back as the job it was: same id, tenant, queue, priority, payload,
-- headers, key and saved state, attempts at zero.
--
-- In:     delay_seconds  for how long from now on the job is not due
--         from_start     without what its handler had saved
-- Out:    true when it was restored, false when there is no such dead letter. It is an error
--         (unique_violation) if another job holds the unique_key meanwhile, or has the id; then the
--         dead letter stays. If the job that holds the key is stopping, the restored one waits for
--         its end. If that job's period is over, it gives up the key (pass_key.sql).
-- Errors: PNQ01: its payload was blanked (prune_letters), so the job that it was cannot be made.
-- Locks:  the dead letter: of two who requeue, one wins. A job that gives up the key.
--
-- The job is inserted before the letter is deleted: if a letter without a job is deleted, its
-- history goes with it (migrations/0019_retention.sql).
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
declare
    letter {schema}.dead_letter_jobs;
    wait_id uuid;
begin
    select d.* into letter from {schema}.dead_letter_jobs as d where d.id = requeue.job_id for update;
    if not found then
        return false;
    end if;
    if letter.blanked_at is not null then
        raise exception 'the payload of dead letter % was blanked', requeue.job_id
            using errcode = 'PNQ01', hint = 'Its payload is not kept any more (retention). Enqueue the job anew.';
    end if;
    if letter.unique_key is not null then
        select p.waits_for into wait_id
        from {schema}.pass_key(letter.org_id, coalesce(letter.unique_scope, letter.job_type), letter.unique_key, 'keep') as p;
    end if;
    insert into {schema}.jobs (
        id, org_id, queue_name, job_type, payload, priority, scheduled_at, max_attempts, unique_key, created_at, error_message,
        enqueued_by, headers, saved, unique_scope, unique_while, unique_until)
    values (
        letter.id, letter.org_id, letter.queue_name, letter.job_type, letter.payload, letter.priority,
        {schema}.clock() + make_interval(secs => requeue.delay_seconds), letter.max_attempts, letter.unique_key,
        letter.created_at, letter.error_message, letter.enqueued_by, letter.headers,
        case when not requeue.from_start then letter.saved end, letter.unique_scope, letter.unique_while,
        letter.unique_until);
    if not found then
        return false;  -- a trigger of the user's has left it out
    end if;
    delete from {schema}.dead_letter_jobs as d where d.id = requeue.job_id;
    if wait_id is not null then
        perform {schema}.run_after(array[letter.id], array[wait_id]);
    end if;
    return true;
end
$$;
