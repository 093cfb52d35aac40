-- requeue_all: bring back dead letters, the oldest first, as requeue() does. Every filter may be
-- null.
--
-- Out:    how many were restored, at most `jobs_max`. One that cannot be stays a dead letter, and
--         does not count: an unfinished job holds its unique_key, a job has its id, a constraint or
--         trigger refuses it.
-- Locks:  the dead letters, `skip locked`: of two who requeue, each restores others.
create or replace function {schema}.requeue_all(queue_name text, job_type text, jobs_max integer, org_id uuid default null)
returns integer
language plpgsql volatile
as $$
#variable_conflict use_column
declare
    letter record;
    was_there boolean;
    restored integer := 0;
begin
    if jobs_max < 1 then
        return 0;
    end if;
    for letter in
        select d.id
        from {schema}.dead_letter_jobs as d
        where (requeue_all.queue_name is null or d.queue_name = requeue_all.queue_name)
          and (requeue_all.job_type is null or d.job_type = requeue_all.job_type)
          and (requeue_all.org_id is null or d.org_id = requeue_all.org_id)
        order by d.died_at, d.id
        for update skip locked
    loop
        begin
            set constraints all deferred;
            was_there := {schema}.requeue(letter.id);
            set constraints all immediate;
            restored := restored + was_there::integer;
        exception
            when others or assert_failure then
                if not {schema}.is_rows_own(sqlstate) then
                    raise;
                end if;
        end;
        exit when restored >= jobs_max;
    end loop;
    return restored;
end
$$;
