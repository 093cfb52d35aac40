-- move_to_letters: move jobs to the dead letters, whole, each with its history. There is no other
-- burial: bury, give_back (for a retry with no attempt left) and reclaim call it. The caller has
-- noted the last attempts (note_attempts).
--
-- In:     the jobs, as their last attempts ended: the message of an attempt becomes the letter's.
--         The reason of each death. `attempts`, `error_messages`: what each letter says of these,
--         where that is not the attempt's; null, or arrays of the same length.
-- Errors: PNQ06: a trigger or rule of the user's keeps a row. Program_limit_exceeded: a payload is
--         too large (letter_id).
-- Locks:  none of its own: the caller holds the rows.
-- Index:  jobs_pkey, dead_letter_jobs_pkey. `= any (ids)` and the join: see complete.sql.
--
-- One statement deletes the rows and inserts the letters. If a job goes without a letter, a trigger
-- deletes its history (migration 0009). Here the trigger need not look for the letters:
-- `pgnotifyq.buries` says that each job has got one. If somebody waits for a death, it is
-- announced.
create or replace function {schema}.move_to_letters(
    ended {schema}.ended_attempt[], reasons text[], died_at timestamptz,
    attempts integer[] default null, error_messages text[] default null)
returns void
language plpgsql volatile
set plan_cache_mode = force_generic_plan
set jit = off
set enable_seqscan = off
set enable_bitmapscan = off
set enable_nestloop = off
set enable_mergejoin = off
as $$
declare
    ids constant uuid[] := (select array_agg(e.job_id) from unnest(ended) as e);
    letter_ids uuid[];
    awaited_ids uuid[];
begin
    perform set_config('pgnotifyq.buries', 'yes', true);
    with dead as (
        delete from {schema}.jobs as j
        using unnest(ended, reasons, move_to_letters.attempts, error_messages)
            as e(job_id, execution_id, org_id, attempt, started_at, outcome, said, reason, charged, error)
        where j.id = any (ids) and j.id = e.job_id and j.current_execution_id = e.execution_id
        returning j.*, e.reason, coalesce(e.error, e.said) as error, coalesce(e.charged, e.attempt) as charged
    ), letters as (
        insert into {schema}.dead_letter_jobs (
            id, org_id, queue_name, job_type, payload, priority, scheduled_at, attempts, max_attempts, unique_key,
            created_at, reason, error_message, history, died_at, enqueued_by, headers, saved, unique_scope, unique_while,
            unique_until)
        select g.id, d.org_id, d.queue_name, d.job_type, d.payload, d.priority, d.scheduled_at, d.charged, d.max_attempts,
            d.unique_key, d.created_at, d.reason, {schema}.letter_error(g.id, d.id, d.error), {schema}.history(d.id, d.org_id),
            move_to_letters.died_at, d.enqueued_by, d.headers, d.saved, d.unique_scope, d.unique_while, d.unique_until
        from dead as d, lateral (select {schema}.letter_id(d.id, pg_column_size(d.payload)) as id offset 0) as g
        returning id
    )
    select (select array_agg(l.id) from letters as l), (select array_agg(d.id) filter (where d.awaited) from dead as d)
    into letter_ids, awaited_ids;
    perform set_config('pgnotifyq.buries', '', true);
    if coalesce(cardinality(letter_ids), 0) < cardinality(ids) then
        perform {schema}.refuse_unwritten();
    end if;
    if pg_relation_size('{schema}.hooks') > 0 then
        perform {schema}.fire_hooks_of_dead(letter_ids);
    end if;
    perform {schema}.announce_end(d.id) from unnest(awaited_ids) as d(id);
end
$$;
