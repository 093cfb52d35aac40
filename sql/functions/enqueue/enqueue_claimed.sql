-- enqueue_claimed: enqueue one job that is due, and claim it in the same statement for a worker of the same program that has a free
-- slot and an empty queue. Why, and when it is asked for: pgnotifyq/runtime/handover.py.
--
-- In:     ids of the job and of its execution, made by the caller: whether a lost reply meant a commit can then be found out.
--         The values are checked by the client (model/job.py).
-- Out:    whether it was claimed, and the database's time. When a job of the queue is due already it comes first, and this one is
--         enqueued as any other.
-- Index:  jobs_claimable. Durable: the job is its caller's now, claimed or not.
create or replace function {schema}.enqueue_claimed(
    job_id uuid, execution_id uuid, for_worker uuid, for_seconds double precision,
    for_org uuid, for_queue text, of_type text, payload_text text, of_priority smallint, attempts_max integer)
returns table (is_claimed boolean, time_now timestamptz)
language plpgsql volatile
set jit = off
set enable_seqscan = off
set enable_bitmapscan = off
as $$
begin
    time_now := {schema}.clock();
    -- One look at an empty queue; a queue that holds only jobs of the future takes the long one.
    perform from {schema}.jobs as j where j.is_claimable and j.queue_name = for_queue limit 1;
    is_claimed := not found or not {schema}.has_due(for_queue);
    if is_claimed then
        insert into {schema}.jobs (
            id, org_id, queue_name, job_type, payload, priority, scheduled_at, max_attempts, created_at,
            status, attempts, locked_by, current_execution_id, started_at, lease_expires_at)
        values (
            job_id, for_org, for_queue, of_type, payload_text::jsonb, of_priority, time_now, attempts_max, time_now,
            'running', 1, for_worker, execution_id, time_now, time_now + make_interval(secs => for_seconds));
    else
        insert into {schema}.jobs (id, org_id, queue_name, job_type, payload, priority, scheduled_at, max_attempts, created_at)
        values (job_id, for_org, for_queue, of_type, payload_text::jsonb, of_priority, time_now, attempts_max, time_now);
    end if;
    return next;
end
$$;
