-- enqueue_claimed: enqueue one job that is due, and claim it in the same statement for a worker of
-- the same program that has a free slot and an empty queue. Why, and when the client asks for it:
-- pgnotifyq/runtime/shortcuts.py.
--
-- In:     ids of the job and of its execution, made by the caller: whether a lost reply meant a
--         commit can then be found out. The client checks the values (model/job.py).
-- Out:    whether it was claimed, and the database's time. If a job of the queue is due already,
--         that job comes first, and this one is enqueued as any other.
-- Index:  jobs_claimable. Durable: the job is its caller's now, claimed or not.
create or replace function {schema}.enqueue_claimed(
    job_id uuid, execution_id uuid, worker_id uuid, lease_seconds double precision,
    org_id uuid, queue_name text, job_type text, payload_text text, priority smallint, max_attempts integer)
returns table (is_claimed boolean, time_now timestamptz)
language plpgsql volatile
set jit = off
set enable_seqscan = off
set enable_bitmapscan = off
as $$
#variable_conflict use_column
declare
    job {schema}.jobs;
begin
    time_now := {schema}.clock();
    -- All that the rule reads of a job whose worker has a handler for it, and which nobody can have
    -- put aside. What is not set here is null, and a condition that is null keeps the job pending.
    job.scheduled_at := time_now;
    is_claimed := coalesce({schema}.may_start(job, null, false, time_now), false);
    if is_claimed then
        -- One look at an empty queue; a queue that holds only jobs of the future takes the long
        -- one.
        perform from {schema}.jobs as j where j.is_claimable and j.queue_name = enqueue_claimed.queue_name limit 1;
        is_claimed := not found or not {schema}.has_due(enqueue_claimed.queue_name);
    end if;
    if is_claimed then
        insert into {schema}.jobs (
            id, org_id, queue_name, job_type, payload, priority, scheduled_at, max_attempts, created_at,
            status, attempts, locked_by, current_execution_id, started_at, lease_expires_at)
        values (
            enqueue_claimed.job_id, enqueue_claimed.org_id, enqueue_claimed.queue_name, enqueue_claimed.job_type,
            payload_text::jsonb, enqueue_claimed.priority, time_now, enqueue_claimed.max_attempts, time_now,
            'running', 1, enqueue_claimed.worker_id, enqueue_claimed.execution_id, time_now,
            time_now + make_interval(secs => lease_seconds));
    else
        insert into {schema}.jobs (id, org_id, queue_name, job_type, payload, priority, scheduled_at, max_attempts, created_at)
        values (
            enqueue_claimed.job_id, enqueue_claimed.org_id, enqueue_claimed.queue_name, enqueue_claimed.job_type,
            payload_text::jsonb, enqueue_claimed.priority, time_now, enqueue_claimed.max_attempts, time_now);
    end if;
    return next;
end
$$;
