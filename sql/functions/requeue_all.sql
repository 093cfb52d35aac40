-- requeue_all: bring back dead letters, the oldest first, as requeue() does. Every filter may be null.
--
-- Out:    how many were restored, at most `jobs_max`. One whose unique_key an unfinished job holds stays a dead letter, and
--         does not count.
-- Locks:  the dead letters, `skip locked`: of two who requeue, each restores others.
create or replace function {schema}.requeue_all(of_queue text, of_type text, jobs_max integer) returns integer
language plpgsql volatile
as $$
declare
    letter record;
    restored integer := 0;
begin
    if jobs_max < 1 then
        return 0;
    end if;
    for letter in
        select d.id
        from {schema}.dead_letter_jobs as d
        where (of_queue is null or d.queue_name = of_queue)
          and (of_type is null or d.job_type = of_type)
        order by d.died_at, d.id
        for update skip locked
    loop
        begin
            if {schema}.requeue(letter.id) then
                restored := restored + 1;
            end if;
        exception
            when unique_violation then
                continue;
        end;
        exit when restored >= jobs_max;
    end loop;
    return restored;
end
$$;
