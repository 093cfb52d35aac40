-- fire_hooks: enqueue the hooks of jobs that have ended, or are to be tried again, in the statement
-- that says so. So a hook is enqueued if and only if its job has ended. The hook runs at least
-- once, whichever process dies in between, and is tried again as any other job.
--
-- In:     the jobs, as their rows are now. A job that is pending has failed and is to be tried
--         again.
-- Locks:  none of its own: the caller holds the rows.
-- Index:  jobs_pkey, hooks_pkey.
--
-- Callers ask first whether there are hooks at all: `pg_relation_size('{schema}.hooks') > 0`. If
-- there are none, it costs nothing else.
create or replace function {schema}.fire_hooks(job_ids uuid[]) returns void
language plpgsql volatile
set jit = off
set enable_seqscan = off
set enable_nestloop = on
as $$
begin
    perform {schema}.fire_hook(j)
    from {schema}.jobs as j
    where j.id = any (fire_hooks.job_ids)
      and exists (select from {schema}.hooks as h where h.job_type = j.job_type);
end
$$;

-- fire_hook: the same for one job. Its row is given as it is, or is about to be.
--
-- A role that may not read the hooks, or may not enqueue, fires none. So a cancel needs no more
-- rights than before.
create or replace function {schema}.fire_hook(job {schema}.jobs) returns void
language plpgsql volatile
as $$
begin
    if not has_table_privilege({schema_text} || '.hooks', 'select') or not has_table_privilege({schema_text} || '.jobs', 'insert') then
        return;
    end if;
    perform {schema}.enqueue_hooks(
        job.org_id, case job.status when 'pending' then 'retried' else job.status end, job.job_type, job.headers,
        jsonb_build_object(
            'job_id', job.id, 'job_type', job.job_type, 'queue_name', job.queue_name,
            'ending', case job.status when 'pending' then 'retried' else job.status end,
            'payload', job.payload, 'attempts', job.attempts, 'result', job.result, 'error_message', job.error_message,
            'reason', null));
end
$$;

-- fire_hooks_of_dead: the same for jobs that have just become dead letters.
--
-- In:     the ids of the letters.
-- Index:  dead_letter_jobs_pkey, hooks_pkey.
create or replace function {schema}.fire_hooks_of_dead(letter_ids uuid[]) returns void
language plpgsql volatile
set jit = off
set enable_seqscan = off
set enable_nestloop = on
as $$
begin
    perform {schema}.enqueue_hooks(
        d.org_id, 'dead', d.job_type, d.headers,
        jsonb_build_object(
            'job_id', d.id, 'job_type', d.job_type, 'queue_name', d.queue_name, 'ending', 'dead', 'payload', d.payload,
            'attempts', d.attempts, 'result', null, 'error_message', d.error_message, 'reason', d.reason))
    from {schema}.dead_letter_jobs as d
    where d.id = any (fire_hooks_of_dead.letter_ids)
      and exists (select from {schema}.hooks as h where h.job_type = d.job_type and h.ending = 'dead');
end
$$;

-- enqueue_hooks: enqueue the hooks of one job that has ended in one way; `told` is what they get.
--
-- A payload and a result may have 1 MiB each, and so may the payload of a hook, which tells both.
-- If it would have more, the result is left out; if that is not enough, the payload, too.
-- `left_out` names them.
create or replace function {schema}.enqueue_hooks(org_id uuid, ending text, job_type text, headers jsonb, told jsonb) returns void
language plpgsql volatile
as $$
#variable_conflict use_column
begin
    if octet_length(told::text) > 1048576 and {schema}.compact_bytes(told) > 1048576 then
        told := told || '{{"result": null, "left_out": ["result"]}}';
        if {schema}.compact_bytes(told) > 1048576 then
            told := told || '{{"payload": null, "left_out": ["result", "payload"]}}';
        end if;
    end if;
    insert into {schema}.jobs (org_id, queue_name, job_type, payload, headers, queue_not_said)
    select enqueue_hooks.org_id, coalesce(k.queue_name, 'default'), h.hook_type, enqueue_hooks.told, enqueue_hooks.headers,
        k.queue_name is null
    from {schema}.hooks as h, lateral (select {schema}.queue_of(h.hook_type) as queue_name offset 0) as k
    where h.job_type = enqueue_hooks.job_type and h.ending = enqueue_hooks.ending;
end
$$;

-- publish_hooks: publish the hooks of a worker's job types, in the place of those before. A hook
-- that this worker lacks stays while a live worker serves it, as in a deploy.
--
-- In:     the worker's job types; its hooks as arrays of one length.
-- Locks:  entries of hooks_pkey, in order: workers that start at once do not deadlock.
create or replace function {schema}.publish_hooks(job_types text[], of_types text[], endings text[], hook_types text[])
returns void
language plpgsql volatile
as $$
#variable_conflict use_column
begin
    -- A worker without hooks needs no right to the table.
    if coalesce(cardinality(of_types), 0) = 0 and not (
        has_table_privilege('{schema}.hooks', 'select') and has_table_privilege('{schema}.hooks', 'insert')
        and has_table_privilege('{schema}.hooks', 'delete'))
    then
        return;
    end if;
    insert into {schema}.hooks (job_type, ending, hook_type)
    select n.job_type, n.ending, n.hook_type
    from unnest(of_types, endings, hook_types) as n(job_type, ending, hook_type)
    order by n.job_type, n.ending, n.hook_type
    on conflict do nothing;
    delete from {schema}.hooks as h
    where h.job_type = any (publish_hooks.job_types)
      and not exists (
          select from unnest(of_types, endings, hook_types) as n(job_type, ending, hook_type)
          where n.job_type = h.job_type and n.ending = h.ending and n.hook_type = h.hook_type)
      and not exists (select from {schema}.handlers as x where x.job_type = h.hook_type);
end
$$;
