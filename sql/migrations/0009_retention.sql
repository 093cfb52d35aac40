-- The database says how long finished jobs are kept, by queue and kind of ending. If it says
-- nothing for a queue, the settings of the workers that serve the queue count.
create table {schema}.retention (
    queue_name {schema}.queue_name not null,
    -- The status that a job ended with.
    ending text not null,
    keep_seconds double precision not null,

    constraint retention_pkey primary key (queue_name, ending),
    constraint ending_is_known check (ending in ('completed', 'cancelled')),
    -- At most a hundred years, which is for ever. A time so long ago can still be computed.
    constraint time_is_bounded check (keep_seconds between 0 and 3155760000)
);

-- A job's history goes with the job: if it is pruned, deleted by hand, or deleted by a user's
-- cascade. The history of a job that died belongs to its dead letter, and goes with that.
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
begin
    -- In a burial (functions/end/bury.sql) each job has a letter, and the history belongs to that.
    if current_setting('pgnotifyq.buries', true) = 'yes' then
        return null;
    end if;
    select array_agg(g.id) into ids
    from gone as g
    where not exists (select from {schema}.dead_letter_jobs as d where d.id = g.id);
    -- A role that may delete jobs and no history leaves the history. That is better than to keep
    -- the jobs.
    if ids is not null and has_table_privilege('{schema}.job_executions', 'select, delete') then
        delete from {schema}.job_executions as e where e.job_id = any (ids);
    end if;
    return null;
end
$$;

create trigger jobs_history_goes_with_them
after delete on {schema}.jobs
referencing old table as gone
for each statement execute function {schema}.history_goes_with_its_job();
