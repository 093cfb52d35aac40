-- enqueue_claimed: enqueue one job that is due, and claim it in the same statement. The claim is
-- for a worker of the same program that has a free slot and an empty queue. Why, and when it is
-- called: pgnotifyq/runtime/shortcuts.py.
--
-- In:     the ids of the job and of its execution. The caller makes them: if the reply is lost, it
--         can find out whether the statement committed. The client has checked the values
--         (model/new_job.py).
-- Out:    whether the job was claimed, and the database's time. If another job of the queue is due
--         already, that one comes first, and this one is enqueued as any other.
-- Locks:  `pauses_lock`, shared (admit.sql).
-- Index:  jobs_claimable.
--
-- The commit is durable: the job has been promised to its caller, claimed or not.
create or replace function {schema}.enqueue_claimed(
    job_id uuid, execution_id uuid, worker_id uuid, lease_seconds double precision,
    org_id uuid, queue_name text, job_type text, payload_text text, priority smallint, max_attempts integer,
    headers_text text default null)
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
    -- may_start reads no more of such a job: its worker has a handler for it, and no worker can
    -- have put it aside. The other columns are null here. If a condition is null, the job stays
    -- pending.
    job.scheduled_at := time_now;
    is_claimed := coalesce({schema}.may_start(job, null, false, time_now), false);
    if is_claimed and pg_relation_size('{schema}.pauses') > 0 then
        perform pg_try_advisory_xact_lock_shared({schema}.pauses_lock());
        is_claimed := (
            select cardinality(a.queue_names) > 0 and cardinality(a.job_types) > 0
            from {schema}.admit(array[enqueue_claimed.queue_name], array[enqueue_claimed.job_type], null) as a);
    end if;
    if is_claimed then
        -- If the queue is empty, one look is enough. If it holds only jobs of the future, the long
        -- look is needed.
        perform from {schema}.jobs as j where j.is_claimable and j.queue_name = enqueue_claimed.queue_name limit 1;
        is_claimed := not found or not {schema}.has_due(enqueue_claimed.queue_name);
    end if;
    if is_claimed then
        insert into {schema}.jobs (
            id, org_id, queue_name, job_type, payload, priority, scheduled_at, max_attempts, created_at,
            status, attempts, locked_by, current_execution_id, started_at, lease_expires_at, headers)
        values (
            enqueue_claimed.job_id, enqueue_claimed.org_id, enqueue_claimed.queue_name, enqueue_claimed.job_type,
            payload_text::jsonb, enqueue_claimed.priority, time_now, enqueue_claimed.max_attempts, time_now,
            'running', 1, enqueue_claimed.worker_id, enqueue_claimed.execution_id, time_now,
            time_now + make_interval(secs => lease_seconds), headers_text::jsonb);
    else
        insert into {schema}.jobs (
            id, org_id, queue_name, job_type, payload, priority, scheduled_at, max_attempts, created_at, headers)
        values (
            enqueue_claimed.job_id, enqueue_claimed.org_id, enqueue_claimed.queue_name, enqueue_claimed.job_type,
            payload_text::jsonb, enqueue_claimed.priority, time_now, enqueue_claimed.max_attempts, time_now, headers_text::jsonb);
    end if;
    return next;
end
$$;
