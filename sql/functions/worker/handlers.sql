-- publish_handlers: publish the handlers of a worker, in the place of those that it published
-- before.
--
-- In:     arrays of one length: job types, the queue of each (null: not said), its max_attempts
--         (null: not said).
-- Locks:  the worker's rows; then the pending jobs that wait for their queue, `skip locked`: if a
--         row is locked, another worker moves that job.
-- Index:  handlers_pkey; jobs_claimable_by_type, for jobs in `default` whose handler wants another
--         queue.
create or replace function {schema}.publish_handlers(worker_id uuid, job_types text[], queue_names text[], maxima integer[]) returns void
language plpgsql volatile
set jit = off
set enable_seqscan = off
as $$
#variable_conflict use_column
begin
    -- If the worker's row was taken away meanwhile, publish nothing. The worker publishes when it
    -- registers anew.
    perform from {schema}.worker_heartbeats as w where w.worker_id = publish_handlers.worker_id for key share;
    if not found then
        return;
    end if;
    delete from {schema}.handlers as h
    where h.worker_id = publish_handlers.worker_id and not h.job_type = any (coalesce(job_types, '{{}}'));
    insert into {schema}.handlers as h (worker_id, job_type, queue_name, max_attempts)
    select distinct on (n.job_type) publish_handlers.worker_id, n.job_type, n.queue_name, n.max_attempts
    from unnest(job_types, queue_names, maxima) as n(job_type, queue_name, max_attempts)
    where n.job_type is not null
    on conflict (worker_id, job_type) do update
    set queue_name = excluded.queue_name, max_attempts = excluded.max_attempts, published_at = excluded.published_at;

    -- Jobs that were enqueued without a queue before their handler was known.
    with locked as materialized (
        select j.id, h.queue_name
        from {schema}.handlers as h
        join {schema}.jobs as j on j.queue_name || ' ' || j.job_type = 'default ' || h.job_type
        where h.worker_id = publish_handlers.worker_id and h.queue_name <> 'default' and j.is_claimable and j.queue_not_said
        order by j.id
        for update of j skip locked
    )
    update {schema}.jobs as j
    set queue_not_said = false, queue_name = l.queue_name
    from locked as l
    where j.id = l.id and j.status = 'pending';
end
$$;

-- queue_of: the queue that the handler of a job type wants. If workers differ, the handler counts
-- that was published last. Null: no handler is known.
--
-- A role that may not read the table knows no handler. Its job waits in `default` until a worker
-- publishes the type.
create or replace function {schema}.queue_of(job_type text) returns text
language plpgsql stable
as $$
#variable_conflict use_column
begin
    if not has_any_column_privilege({schema_text} || '.handlers', 'select') then
        return null;
    end if;
    return (
        select coalesce(h.queue_name, 'default')
        from {schema}.handlers as h
        where h.job_type = queue_of.job_type
        order by h.job_type, h.published_at desc
        limit 1);
end
$$;
