-- bury: move jobs to the dead letters, whole, each with its history. Their last attempts have been noted (note_attempts).
--
-- In:     jobs and executions; the reason of each death, and the last error; the attempts that each is charged with, null: those
--         that it has.
-- Errors: PNQ06: a trigger or rule of the user's keeps a row. Program_limit_exceeded: a payload is too large (letter_id).
-- Locks:  none of its own: the caller holds the rows.
-- Index:  jobs_pkey, dead_letter_jobs_pkey. `= any (job_ids)` and the join: see complete.sql.
--
-- Rows and letters go and come in one statement: the history of a job that is gone without a letter goes with it (migration 0009).
-- The trigger need not ask for the letters: `pgnotifyq.buries` says that each job has got one.
create or replace function {schema}.bury(
    job_ids uuid[], execution_ids uuid[], reasons text[], errors text[], died_at timestamptz, attempts integer[] default null)
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
    buried integer;
begin
    perform set_config('pgnotifyq.buries', 'yes', true);
    with dead as (
        delete from {schema}.jobs as j
        using unnest(job_ids, execution_ids, reasons, errors, bury.attempts) as e(id, execution_id, reason, error, charged)
        where j.id = any (job_ids) and j.id = e.id and j.current_execution_id = e.execution_id
        returning j.*, e.reason, e.error, coalesce(e.charged, j.attempts) as charged
    )
    insert into {schema}.dead_letter_jobs (
        id, org_id, queue_name, job_type, payload, priority, scheduled_at, attempts, max_attempts, unique_key,
        created_at, reason, error_message, history, died_at)
    select g.id, d.org_id, d.queue_name, d.job_type, d.payload, d.priority, d.scheduled_at, d.charged, d.max_attempts,
        d.unique_key, d.created_at, d.reason, {schema}.letter_error(g.id, d.id, d.error), {schema}.history(d.id), bury.died_at
    from dead as d, lateral (select {schema}.letter_id(d.id, pg_column_size(d.payload)) as id offset 0) as g;
    get diagnostics buried = row_count;
    perform set_config('pgnotifyq.buries', '', true);
    if buried < cardinality(job_ids) then
        perform {schema}.refuse_unwritten();
    end if;
end
$$;
