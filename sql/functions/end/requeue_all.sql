-- requeue_all: bring back dead letters, the oldest first, as requeue() does. Every filter may be
-- null (letter_fits, fingerprint.sql).
--
-- In:     jobs_max       how many at the most
--         per_second     null: all are due at once. Else they fall due one after the other, at this
--                        rate, so that what they failed over is not flooded
--         delay_seconds  how long the first is not due from now on: behind those of a batch before
-- Out:    how many were restored, at most `jobs_max`. One that cannot be stays a dead letter, and
--         does not count: an unfinished job holds its unique_key, a job has its id, a constraint or
--         trigger refuses it.
-- Errors: a rate that is not above zero, or is no number, is refused with PNQ02.
-- Locks:  the dead letters, `skip locked`: of two who requeue, each restores others.
--
-- The rate is in the jobs' times. Naively somebody stays and requeues one job after the other, and
-- if that process ends, so does the rest of the requeue.
--
-- The earlier forms are dropped. Otherwise a call with three arguments would fit all.
drop function if exists {schema}.requeue_all(text, text, integer);
drop function if exists {schema}.requeue_all(text, text, integer, uuid);
create or replace function {schema}.requeue_all(
    queue_name text default null, job_type text default null, jobs_max integer default 1000, org_id uuid default null,
    error_text text default null, died_after timestamptz default null, fingerprint text default null,
    per_second double precision default null, delay_seconds double precision default 0)
returns integer
language plpgsql volatile
as $$
#variable_conflict use_column
declare
    letter record;
    was_there boolean;
    restored integer := 0;
begin
    -- NaN is above every number.
    if requeue_all.per_second <= 0 or requeue_all.per_second = 'nan' then
        raise exception 'per_second % is out of range', requeue_all.per_second
            using errcode = 'PNQ02', hint = 'Use more than 0, or null: all are due at once.';
    end if;
    if jobs_max < 1 then
        return 0;
    end if;
    for letter in
        select d.id
        from {schema}.dead_letter_jobs as d
        where {schema}.letter_fits(
            d, requeue_all.queue_name, requeue_all.job_type, requeue_all.org_id, error_text, died_after, fingerprint)
        order by d.died_at, d.id
        for update skip locked
    loop
        begin
            set constraints all deferred;
            was_there := {schema}.requeue(
                letter.id, requeue_all.delay_seconds + coalesce(restored / requeue_all.per_second, 0));
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
