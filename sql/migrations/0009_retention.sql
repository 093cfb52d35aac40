-- How long finished jobs are kept is said in the database, by queue and kind of ending. A worker's own setting counts for the queues that
-- it serves, and only where nothing is said here.
create table {schema}.retention (
    queue_name {schema}.queue_name not null,
    -- The status that a job ended with.
    ending text not null,
    keep_seconds double precision not null,

    constraint retention_pkey primary key (queue_name, ending),
    constraint ending_is_known check (ending in ('completed', 'cancelled')),
    -- At most a hundred years, which is for ever: a time that is so long ago can be said.
    constraint time_is_bounded check (keep_seconds between 0 and 3155760000)
);

-- A job's history goes with it, however it goes: pruned, deleted by hand, or with a cascade of the user's. That of a job that died is
-- its dead letter's, and goes with that.
create or replace function {schema}.history_goes_with_its_job() returns trigger
language plpgsql
set jit = off
set enable_seqscan = off
-- Letters are looked up by key: a caller that allows hash joins only would have all of them read.
set enable_nestloop = on
set enable_hashjoin = off
set enable_mergejoin = off
as $$
declare
    ids uuid[];
begin
    -- A burial (functions/end/move_to_letters.sql): each job has a letter, whose history it is.
    if current_setting('pgnotifyq.buries', true) = 'yes' then
        return null;
    end if;
    select array_agg(g.id) into ids
    from gone as g
    where not exists (select from {schema}.dead_letter_jobs as d where d.id = g.id);
    -- Who may delete jobs and no history leaves it; that is better than to keep the jobs.
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
