-- ask_stack, answer_stack: where a running handler stands, asked of the worker that holds its job.
--
-- ask_stack
-- Out:    `request_id`, by which the answer is found; null: no worker holds the job. `is_there`
--         tells whether there is such a job. The worker that holds it, its host, its process, and
--         whether it is alive.
-- Index:  jobs_pkey. The table of requests has a page or two.
-- Rights: the caller's. A tenant in its own session asks for its own jobs; roles of tenants,
--         producers and observers may not write requests, so they may not ask.
--
-- The worker is told on its own channel, `stack <request>`. Anybody can send that. So the worker
-- believes only the row, and writes the answer into it.
create or replace function {schema}.ask_stack(job_id uuid)
returns table (is_there boolean, request_id uuid, execution_id uuid, worker_id uuid, host text, pid integer, is_alive boolean)
language plpgsql volatile
set jit = off
set enable_seqscan = off
set enable_bitmapscan = off
as $$
#variable_conflict use_column
declare
    job record;
begin
    select j.org_id, j.is_held, j.current_execution_id, j.locked_by into job
    from {schema}.jobs as j
    where j.id = ask_stack.job_id;
    is_there := found;
    if not found or not job.is_held then
        return next;
        return;
    end if;
    delete from {schema}.stack_requests as s
    using (
        select o.request_id
        from {schema}.stack_requests as o
        where o.asked_at < {schema}.clock() - interval '10 minutes'
        limit 1000
        for update skip locked
    ) as old
    where s.request_id = old.request_id;
    insert into {schema}.stack_requests as s (org_id, job_id, execution_id, worker_id)
    values (job.org_id, ask_stack.job_id, job.current_execution_id, job.locked_by)
    returning s.request_id, s.execution_id, s.worker_id into ask_stack.request_id, ask_stack.execution_id, ask_stack.worker_id;
    select w.host, w.pid into ask_stack.host, ask_stack.pid
    from {schema}.worker_heartbeats as w
    where w.worker_id = job.locked_by;
    ask_stack.is_alive := {schema}.is_alive(job.locked_by);
    perform {schema}.notify({schema}.worker_channel(job.locked_by), 'stack ' || ask_stack.request_id);
    return next;
end
$$;

-- answer_stack
-- In:     the request, and the worker that it was made to. JSON of at most 64 KiB.
-- Out:    whether this call answered the request; not if it was answered before, is another
--         worker's, or is gone. The client that waits for it is told on `<schema>_finished`.
create or replace function {schema}.answer_stack(request_id uuid, worker_id uuid, stack text) returns boolean
language plpgsql volatile
set jit = off
set enable_seqscan = off
set enable_bitmapscan = off
as $$
#variable_conflict use_column
begin
    update {schema}.stack_requests as s
    set stack = answer_stack.stack, answered_at = {schema}.clock()
    where s.request_id = answer_stack.request_id and s.worker_id = answer_stack.worker_id and s.answered_at is null;
    if not found then
        return false;
    end if;
    perform {schema}.notify({schema_text} || '_finished', answer_stack.request_id::text);
    return true;
end
$$;
