-- bury: move a job to the dead letters, whole, with its history. Its last attempt has been noted (note_attempt).
--
-- In:     the job and its execution; the attempts that it is charged with; the reason of its death, and its last error.
-- Errors: PNQ06: a trigger or rule of the user's keeps the row. Program_limit_exceeded: its payload is too large (letter_id).
-- Locks:  none of its own: the caller holds the job's row.
-- Index:  jobs_pkey, dead_letter_jobs_pkey.
--
-- A nested loop, though settle has turned those off: the trigger on the delete asks whether this one job has a letter, and a hash
-- join would read all letters for that. The letter is there when the trigger asks, for both are of one statement.
create or replace function {schema}.bury(
    job_id uuid, execution_id uuid, attempts integer, reason text, error_message text, died_at timestamptz)
returns void
language plpgsql volatile
set plan_cache_mode = force_generic_plan
set jit = off
set enable_seqscan = off
set enable_bitmapscan = off
set enable_nestloop = on
set enable_hashjoin = off
set enable_mergejoin = off
as $$
#variable_conflict use_column
begin
    with dead as (
        delete from {schema}.jobs as j
        where j.id = bury.job_id and j.current_execution_id = bury.execution_id
        returning j.*
    )
    insert into {schema}.dead_letter_jobs (
        id, org_id, queue_name, job_type, payload, priority, scheduled_at, attempts, max_attempts, unique_key,
        created_at, reason, error_message, history, died_at)
    select g.id, d.org_id, d.queue_name, d.job_type, d.payload, d.priority, d.scheduled_at, bury.attempts, d.max_attempts,
        d.unique_key, d.created_at, bury.reason, {schema}.letter_error(g.id, d.id, bury.error_message),
        {schema}.history(d.id), bury.died_at
    from dead as d, lateral (select {schema}.letter_id(d.id, pg_column_size(d.payload)) as id offset 0) as g;
    if not found then
        perform {schema}.refuse_unwritten();
    end if;
end
$$;
