-- may_start: the one rule of whether a pending job may become running now. Each statement that
-- makes a job running asks it:
--
--   claim              a look at the queues, in order
--   claim_by_type      the same, where jobs of others stand at the head
--   claim_apart        the same, one row at a time: it finds the rows, and claim_named takes each
--   claim_named        a wake-up has named the job
--   enqueue_claimed    the statement that inserts the job claims it
--
-- In:     the job's row; the types that the worker has handlers for (null: all); whether
--         job_troubles holds any row; the time. The claim asks for `has_troubles` once, not once a
--         row: as a rule the table is empty.
-- Out:    whether the job is due, is for this worker, and was not put aside.
--
-- The rest of today's rule is not a matter of one row. It is kept where the rows are chosen:
--
--   order       A look takes the first in order of (queue, priority, time, id). claim_named and
--               enqueue_claimed name a job. A worker uses them only if it has just seen its queues
--               empty (runtime/shortcuts.py), and enqueue_claimed looks once more.
--   queue       The queue is the head of each range of the look, and a condition of claim_named.
--   type        claim_by_type takes the types from its ranges. A claim that goes on locks rows
--               whatever their type, and updates those of the worker's types (claim.sql,
--               `is_mine`). Both pass null for the types here.
--   draining    A worker that drains does not ask.
--   pause       Each way asks admit first (admit.sql), which leaves paused queues and types out of
--               what the way looks at. claim_by_type is given the types by claim.
--
-- The function is SQL of one expression. So the planner puts the expression in its place, and a
-- column in the place of each field of the row: `scheduled_at <= time_now` is then the end of a
-- range of the index. Written in plpgsql, or with a subselect, it would be a filter that is called
-- for each job of the future. tests/ledger/test_may_start.py checks this. The test also tries every
-- way in every situation, and looks in the database for a way that does not ask. A new way goes
-- into the table of that test.
--
-- What will come, and where:
--
--   limit       The claim counts how many of a queue or lane run, and what its rate still admits.
--               First it takes the lock of the governed queue. Then it counts in a statement of its
--               own, whose snapshot is newer than the lock. It passes in how many of which lanes it
--               may take. A job of a governed queue never starts by a way that does not hold that
--               lock: claim_named and enqueue_claimed are told no here, and the job waits for a
--               look.
--   turn        It orders lanes and refuses nothing. It belongs to the choice of rows, as order
--               does.
--   key         It is a condition here that no job of the key runs. A unique index on what is held
--               stands behind it.
--   hand-over   The statement that inserts a job as running, for a sleeper of another process, is
--               one more way in the list above. It asks this rule with the sleeper's types, and is
--               told no for a governed queue.
create or replace function {schema}.may_start(
    job {schema}.jobs, job_types text[], has_troubles boolean, time_now timestamptz)
returns boolean
language sql stable
as $$
    select (job).scheduled_at <= time_now
        and (job_types is null or (job).job_type = any (job_types))
        and (not has_troubles or not {schema}.is_in_trouble((job).org_id, (job).id, time_now))
$$;
