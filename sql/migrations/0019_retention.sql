-- Retention says more: of dead letters, too; of payloads and results, which may go before their
-- row; and of all queues that nothing else is said of. And the history of a dead letter goes with
-- it, however it goes.

-- A queue's row says of one ending. The queue `*` is every queue: what a queue's own row leaves
-- null is said by it. What both leave null is not said: finished jobs are then kept as long as the
-- workers of their queue are set to, dead letters until somebody deletes them, payloads and results
-- as long as their row.
alter table {schema}.retention
    alter column keep_seconds drop not null,
    -- From its end on. Then the payload and the headers are blanked.
    add column payload_seconds double precision,
    -- Then the result and the message of the progress are.
    add column result_seconds double precision,
    drop constraint ending_is_known,
    add constraint ending_is_known check (ending in ('completed', 'cancelled', 'dead')),
    add constraint times_are_bounded check (
        payload_seconds between 0 and 3155760000 and result_seconds between 0 and 3155760000),
    add constraint something_is_said check (num_nonnulls(keep_seconds, payload_seconds, result_seconds) > 0);

-- Null, as nearly always: the payload is there. Else it was blanked, and the letter cannot be
-- requeued: a handler would be given what nobody enqueued.
alter table {schema}.dead_letter_jobs add column blanked_at timestamptz;

-- A job's history, and what was in its way, go with the job: if it is pruned, deleted by hand, or
-- deleted by a user's cascade. The history of a job that died belongs to its dead letter, and goes
-- with that. Otherwise as before (0009); the history of another tenant's job of the same id stays.
create or replace function {schema}.history_goes_with_its_job() returns trigger
language plpgsql
set jit = off
set enable_seqscan = off
-- Letters are looked up by key. If the caller's settings allowed hash joins only, all letters would
-- be read.
set enable_nestloop = on
set enable_hashjoin = off
set enable_mergejoin = off
as $$
declare
    ids uuid[];
    org_ids uuid[];
    is_one_tenant boolean;
begin
    -- In a burial (functions/end/move_to_letters.sql) each job has a letter, and the history
    -- belongs to that.
    if current_setting('pgnotifyq.buries', true) = 'yes' then
        return null;
    end if;
    -- Who deletes a job that runs, deletes what the next one of its unique key waits for.
    if exists (select from gone as g where g.is_held and g.key_passed_on)
        and has_column_privilege('{schema}.jobs', 'waits_for', 'update')
    then
        perform {schema}.start_successors_of(row(g.*)::{schema}.jobs) from gone as g where g.is_held and g.key_passed_on;
    end if;
    select array_agg(g.id), array_agg(g.org_id) into ids, org_ids
    from gone as g
    where not exists (select from {schema}.dead_letter_jobs as d where d.id = g.id and d.org_id = g.org_id);
    if ids is null then
        return null;
    end if;
    is_one_tenant := org_ids[1] = all (org_ids);
    -- A role that may delete jobs and no history leaves the history. That is better than to keep
    -- the jobs. Rights are asked for one by one: of a list, any is enough.
    if has_table_privilege('{schema}.job_executions', 'select') and has_table_privilege('{schema}.job_executions', 'delete') then
        -- Nearly always they are of one tenant. To look for each one's takes longer.
        delete from {schema}.job_executions as e
        where e.job_id = any (ids)
          and e.org_id = case when is_one_tenant then org_ids[1] else org_ids[array_position(ids, e.job_id)] end;
    end if;
    if pg_relation_size('{schema}.job_troubles') > 0 and has_table_privilege('{schema}.job_troubles', 'select')
        and has_table_privilege('{schema}.job_troubles', 'delete')
    then
        delete from {schema}.job_troubles as t
        where t.job_id = any (ids) and t.org_id = org_ids[array_position(ids, t.job_id)];
    end if;
    return null;
end
$$;

-- The same of a dead letter, unless its job has come back (functions/end/requeue.sql): a requeue
-- deletes the letter and inserts the job in one statement, and the history is the job's again.
create function {schema}.history_goes_with_its_letter() returns trigger
language plpgsql
set jit = off
set enable_seqscan = off
set enable_nestloop = on
set enable_hashjoin = off
set enable_mergejoin = off
as $$
declare
    ids uuid[];
    org_ids uuid[];
    is_one_tenant boolean;
begin
    if not has_table_privilege('{schema}.job_executions', 'select') or not has_table_privilege('{schema}.job_executions', 'delete') then
        return null;
    end if;
    select array_agg(g.id), array_agg(g.org_id) into ids, org_ids
    from gone as g
    where not exists (select from {schema}.jobs as j where j.id = g.id and j.org_id = g.org_id);
    if ids is not null then
        is_one_tenant := org_ids[1] = all (org_ids);
        -- Nearly always they are of one tenant. To look for each one's takes longer.
        delete from {schema}.job_executions as e
        where e.job_id = any (ids)
          and e.org_id = case when is_one_tenant then org_ids[1] else org_ids[array_position(ids, e.job_id)] end;
    end if;
    return null;
end
$$;

create trigger letters_history_goes_with_them
after delete on {schema}.dead_letter_jobs
referencing old table as gone
for each statement execute function {schema}.history_goes_with_its_letter();

-- Two more arguments each. A call of the earlier form would fit both.
drop function if exists {schema}.set_retention(text, double precision, text);
