-- may_start: the one rule of whether a pending job may become running now. Every way to start one asks it:
--
--   claim              a look at the queues, in order
--   claim_by_type      the same, where jobs of others stand at the head
--   claim_apart        the same, one row at a time
--   claim_named        a wake-up has named the job
--   enqueue_claimed    the statement that inserts the job claims it
--
-- In:     the job's row; the types that the worker has handlers for (null: all); whether job_troubles holds any row; the time.
--         `has_troubles` is asked once a claim and not once a row: as a rule the table is empty.
-- Out:    whether the job is due, is for this worker, and was not put aside.
--
-- What else has to hold is not a matter of one row, and is kept where the rows are chosen:
--
--   order       A look takes the first in order of (queue, priority, time, id). The two ways that name a job are only gone by where
--               the worker has just seen its queues empty (runtime/named.py, runtime/handover.py), and enqueue_claimed looks
--               once more.
--   queue       It is the head of each range of the look, and a condition of claim_named.
--   draining    A worker that drains does not ask.
--
-- It is SQL of one expression, so that the planner puts the expression in its place, and a column in the place of each field of the
-- row: `scheduled_at <= time_now` is then the end of a range of the index. Written in plpgsql, or with a subselect, it would be a
-- filter that is called for each job of the future. tests/ledger/test_may_start.py sees to that, and tries every way in every
-- situation; a way that is new goes into its table.
--
-- A limit, a turn or a pause is a new condition here, for the row says its queue, tenant and type. What is counted (how many of a
-- lane run) is counted by whoever chooses the rows, after its lock, and passed in as `has_troubles` is.
create or replace function {schema}.may_start(
    job {schema}.jobs, job_types text[], has_troubles boolean, time_now timestamptz)
returns boolean
language sql stable
as $$
    select (job).scheduled_at <= time_now
        and (job_types is null or (job).job_type = any (job_types))
        and (not has_troubles or not {schema}.is_in_trouble((job).org_id, (job).id, time_now))
$$;
