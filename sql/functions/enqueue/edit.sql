-- edit: change a job that waits: when it is due, its priority, its queue, its payload.
--
-- In:     what is null stays as it is. `delay_seconds` is from now on, in place of scheduled_at;
--         zero has it run now.
-- Out:    'edited'; else why not: 'running' (a worker holds it), 'finished' (it has ended:
--         completed, cancelled, or dead), 'unknown' (there is no such job, of this tenant).
-- Errors: what is out of range is refused with PNQ02, as by enqueue.
-- Locks:  the job. If a claim has locked it, this waits for the claim, which comes first.
--
-- Those who follow the job, its queue or the queue that it leaves are told. A job that falls due
-- earlier, or comes to another queue, wakes a worker (migration 0002). A job that was moved has
-- said its queue: no handler's queue takes it elsewhere. If a job waits for another to end
-- (pass_key.sql), it goes on waiting; after that it is due as is said here.
create or replace function {schema}.edit(
    job_id uuid, queue_name text default null, priority integer default null, scheduled_at timestamptz default null,
    delay_seconds double precision default null, payload jsonb default null)
returns text
language plpgsql volatile
set jit = off
set enable_seqscan = off
set enable_bitmapscan = off
as $$
#variable_conflict use_column
declare
    status_now text;
    is_followed constant boolean := pg_relation_size('{schema}.followers') > 0;
    queue_before text;
begin
    if edit.queue_name !~ '^[A-Za-z0-9_][A-Za-z0-9_.:-]{{0,62}}$' then
        raise exception 'queue name % is not valid', quote_literal(edit.queue_name)
            using errcode = 'PNQ02', hint = 'Use 1 to 63 letters, digits and _ . : - (not first: . : -).';
    end if;
    if edit.priority not between -32768 and 32767 then
        raise exception 'priority % is out of range', edit.priority
            using errcode = 'PNQ02', hint = 'Use -32768 to 32767; higher comes first.';
    end if;
    if not isfinite(edit.scheduled_at)
        or extract(year from edit.scheduled_at at time zone 'UTC') not between 2 and 9998
    then
        raise exception 'scheduled_at % is out of range', edit.scheduled_at
            using errcode = 'PNQ02', hint = 'Use a year from 2 to 9998.';
    end if;
    if edit.delay_seconds not between 0 and 316224000 then
        raise exception 'delay_seconds % is out of range', edit.delay_seconds
            using errcode = 'PNQ02', hint = 'Use 0 to 316224000, ten years.';
    end if;
    if octet_length(edit.payload::text) > 1048576 and {schema}.compact_bytes(edit.payload) > 1048576 then
        raise exception 'the payload has % bytes', {schema}.compact_bytes(edit.payload)
            using errcode = 'PNQ02', hint = 'At most 1048576 bytes of JSON; store the data elsewhere and enqueue a reference.';
    end if;
    if is_followed then
        select j.queue_name into queue_before from {schema}.jobs as j where j.id = edit.job_id;
    end if;
    update {schema}.jobs as j
    set queue_name = coalesce(edit.queue_name, j.queue_name),
        queue_not_said = j.queue_not_said and edit.queue_name is null,
        priority = coalesce(edit.priority::smallint, j.priority),
        scheduled_at = case when j.waits_for is null then coalesce(
            {schema}.clock() + make_interval(secs => edit.delay_seconds), edit.scheduled_at, j.scheduled_at) else j.scheduled_at end,
        due_after_wait = case when j.waits_for is not null then coalesce(
            {schema}.clock() + make_interval(secs => edit.delay_seconds), edit.scheduled_at, j.due_after_wait) end,
        payload = coalesce(edit.payload, j.payload)
    where j.id = edit.job_id and j.status = 'pending';
    if found then
        if is_followed then
            perform {schema}.tell_followers('edited', array[edit.job_id], queue_before => queue_before);
        end if;
        return 'edited';
    end if;
    select j.status into status_now from {schema}.jobs as j where j.id = edit.job_id;
    if found then
        return case when status_now in ('pending', 'running') then 'running' else 'finished' end;
    end if;
    perform from {schema}.dead_letter_jobs as d where d.id = edit.job_id;
    return case when found then 'finished' else 'unknown' end;
end
$$;
