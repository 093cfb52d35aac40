-- Wake-ups, the guard of the transitions, and the news of a cancel. The essay on sleeping is in
-- pgnotifyq/runtime/sleep.py; here is its half in the database.

-- Who sleeps on what. A worker that ran dry publishes itself here, and only then do inserts notify.
create unlogged table {schema}.sleepers (
    queue_name text not null,
    worker_id uuid not null,
    -- The worker looks again by itself at this time: the next job it knows to fall due, or infinity.
    expects_at timestamptz not null default 'infinity',

    constraint sleepers_pkey primary key (queue_name, worker_id)
);

-- The channel of one worker: wake-ups and cancels addressed to it alone. At most 24 + 3 + 32 bytes of the 63 allowed.
create or replace function {schema}.worker_channel(worker_id uuid) returns text
language sql immutable parallel safe
as $$ select {schema_text} || '_w_' || replace(worker_id::text, '-', '') $$;

-- After each insert statement: one wake-up a queue, and none at all while nobody sleeps.
create or replace function {schema}.wake_after_insert() returns trigger
language plpgsql
as $$
begin
    if current_setting('transaction_isolation') = 'read committed'
       and not exists (select from {schema}.sleepers)
    then
        return null;
    end if;
    perform {schema}.wake(q.queue_name, q.due_at, q.jobs)
    from (
        select i.queue_name, min(i.scheduled_at) as due_at, count(*) as jobs
        from inserted as i
        where i.status = 'pending'
        group by i.queue_name
    ) as q;
    return null;
end
$$;

create trigger jobs_wake_after_insert
after insert on {schema}.jobs
referencing new table as inserted
for each statement execute function {schema}.wake_after_insert();

-- A pending job moved to an earlier time or another queue.
create or replace function {schema}.wake_after_reschedule() returns trigger
language plpgsql
as $$
begin
    perform {schema}.wake(new.queue_name, new.scheduled_at, 1);
    return null;
end
$$;

create trigger jobs_wake_after_reschedule
after update of scheduled_at, queue_name on {schema}.jobs
for each row
when (new.status = 'pending' and old.status = 'pending'
      and (new.scheduled_at < old.scheduled_at or new.queue_name <> old.queue_name))
execute function {schema}.wake_after_reschedule();

-- The transitions a status may take: what has ended (and has a time for it) changes no more, and nothing is completed that did not
-- run. The rest is legal. pgnotifyq/model/states.py holds the table, and a test tries every pair. The conditions are short
-- because each statement that updates a job reads them anew (0001_jobs.sql).
create or replace function {schema}.refuse_transition() returns trigger
language plpgsql
as $$
begin
    raise exception 'job % is %, it cannot become %', old.id, old.status, new.status
        using errcode = 'PNQ01',
              hint = 'Only pending and running jobs can be cancelled: add "and status in (''pending'', ''running'')". '
                     'A dead letter is requeued with requeue().';
end
$$;

create trigger jobs_a_refuse_transition
before update of status on {schema}.jobs
for each row
when (old.status <> new.status
      and (old.completed_at is not null or (old.status = 'pending' and new.status = 'completed')))
execute function {schema}.refuse_transition();

-- `update jobs set status = 'cancelled'` is the whole API of cancelling. A pending job is finished by it. A running one
-- keeps its lease until the handler has stopped, and the worker that holds it is told, it alone.
create or replace function {schema}.note_cancel() returns trigger
language plpgsql
as $$
begin
    new.completed_at := coalesce(new.completed_at, {schema}.clock());
    if new.current_execution_id is not null then
        perform pg_notify(
            {schema}.worker_channel(new.locked_by), 'cancel ' || new.id || ' ' || new.current_execution_id);
    elsif new.awaited then
        perform pg_notify({schema_text} || '_finished', new.id::text);
    end if;
    return new;
end
$$;

create trigger jobs_b_note_cancel
before update of status on {schema}.jobs
for each row
when (new.status = 'cancelled' and old.completed_at is null)
execute function {schema}.note_cancel();
