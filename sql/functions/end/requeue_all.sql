-- requeue_all: bring back dead letters, the oldest first, as requeue() does. Every filter may be
-- null (letter_fits, fingerprint.sql).
--
-- In:     jobs_max       how many at the most
--         per_second     null: all are due at once. Else they fall due one after the other, at this
--                        rate, so that they do not flood what they failed over
--         delay_seconds  for how long from now on the first is not due: it comes behind those of a
--                        batch before
--         from_start     without what their handlers had saved
-- Out:    how many were restored, at most `jobs_max`. A letter that cannot be restored stays, and
--         does not count: an unfinished job holds its unique_key, a job has its id, its payload was
--         blanked, a constraint or trigger refuses it.
-- Errors: a rate that is not above zero, or is no number, is refused with PNQ02.
-- Locks:  the dead letters, `skip locked`: of two who requeue, each restores others. Then, as
--         enqueue_unique: entries of jobs_unique_key, in order of tenant, scope and key; then jobs
--         that give up their keys, in the order of lock_keys. So this function, a bulk of the same
--         keys and the worker that ends those jobs all wait in the same order.
-- Index:  dead_letter_jobs_by_time, jobs_unique_key.
--
-- The naive function restores each letter as it is found, the oldest first. Then it takes keys in
-- the order of the deaths, and deadlocks with the bulk. To begin anew does not help: if a
-- subtransaction took a key and has ended, a session that waits for that key waits for the whole
-- transaction. So letters are found first. Letters whose keys are held are not found. If there are
-- more than `jobs_max`, and one of those found cannot be restored, others are found in its place;
-- their keys are out of order. A job that would give up its key may have ended before it was
-- locked. Then another job may have the key. So the letters that need keys of such jobs stay, until
-- somebody requeues again.
--
-- The rate is in the jobs' times. The naive way is a process that stays and requeues one job after
-- the other. If that process ends, the rest is not requeued.
--
-- The earlier forms are dropped. Otherwise a call with three arguments would fit all.
drop function if exists {schema}.requeue_all(text, text, integer);
drop function if exists {schema}.requeue_all(text, text, integer, uuid);
drop function if exists {schema}.requeue_all(
    text, text, integer, uuid, text, timestamptz, text, double precision, double precision);
create or replace function {schema}.requeue_all(
    queue_name text default null, job_type text default null, jobs_max integer default 1000, org_id uuid default null,
    error_text text default null, died_after timestamptz default null, fingerprint text default null,
    per_second double precision default null, delay_seconds double precision default 0, from_start boolean default false)
returns integer
language plpgsql volatile
set jit = off
set enable_seqscan = off
set enable_hashjoin = off
set enable_mergejoin = off
as $$
#variable_conflict use_column
declare
    time_now constant timestamptz := {schema}.clock();
    letter record;
    letter_ids uuid[];
    nths bigint[];
    org_ids uuid[];
    scopes text[];
    unique_keys text[];
    has_more boolean;
    are_locked boolean;
    was_there boolean;
    restored integer := 0;
    after_time timestamptz := '-infinity';
    after_id uuid := '00000000-0000-0000-0000-000000000000';
begin
    -- NaN is above every number.
    if requeue_all.per_second <= 0 or requeue_all.per_second = 'nan' then
        raise exception 'per_second % is out of range', requeue_all.per_second
            using errcode = 'PNQ02', hint = 'Use more than 0, or null: all are due at once.';
    end if;
    if jobs_max < 1 then
        return 0;
    end if;
    loop
        select array_agg(f.id order by f.gives_up, f.org_id, f.scope collate "C", f.unique_key collate "C", f.nth),
            array_agg(f.nth order by f.gives_up, f.org_id, f.scope collate "C", f.unique_key collate "C", f.nth),
            array_agg(f.org_id) filter (where f.gives_up), array_agg(f.scope) filter (where f.gives_up),
            array_agg(f.unique_key) filter (where f.gives_up),
            max(f.died_at), (array_agg(f.id order by f.nth desc))[1]
        into letter_ids, nths, org_ids, scopes, unique_keys, after_time, after_id
        from (
            select f.*, restored + row_number() over (order by f.died_at, f.id) - 1 as nth
            from (
                select d.id, d.died_at, d.org_id, coalesce(d.unique_scope, d.job_type) as scope, d.unique_key,
                    exists (
                        select from {schema}.jobs as j
                        where j.org_id = d.org_id and {schema}.key_scope(j) = coalesce(d.unique_scope, d.job_type)
                          and j.unique_key = d.unique_key and {schema}.holds_key(j)) as gives_up
                from {schema}.dead_letter_jobs as d
                where (d.died_at, d.id) > (after_time, after_id)
                  and d.blanked_at is null and {schema}.letter_fits(
                      d, requeue_all.queue_name, requeue_all.job_type, requeue_all.org_id, error_text, died_after, fingerprint)
                  and not exists (
                      select from {schema}.jobs as j
                      where j.org_id = d.org_id and {schema}.key_scope(j) = coalesce(d.unique_scope, d.job_type)
                        and j.unique_key = d.unique_key and {schema}.holds_key(j) and not {schema}.gives_up_key(j, time_now))
                order by d.died_at, d.id
                limit jobs_max - restored
                for update skip locked
            ) as f
        ) as f;
        exit when letter_ids is null;
        has_more := cardinality(letter_ids) = jobs_max - restored;
        are_locked := org_ids is null;
        for letter in
            select l.id, l.nth, l.place > cardinality(letter_ids) - cardinality(org_ids) as gives_up
            from unnest(letter_ids, nths) with ordinality as l(id, nth, place)
            order by l.place
        loop
            if letter.gives_up and not are_locked then
                are_locked := {schema}.lock_keys(org_ids, scopes, unique_keys);
                exit when not are_locked;
            end if;
            -- Another job may have got the key meanwhile. It may give up the key by now, but it is
            -- not locked. So the letter stays.
            if not coalesce(letter.gives_up, false) then
                perform
                from {schema}.dead_letter_jobs as d
                join {schema}.jobs as j
                    on j.org_id = d.org_id and {schema}.key_scope(j) = coalesce(d.unique_scope, d.job_type)
                    and j.unique_key = d.unique_key and {schema}.holds_key(j)
                where d.id = letter.id;
                continue when found;
            end if;
            begin
                set constraints all deferred;
                was_there := {schema}.requeue(
                    letter.id, requeue_all.delay_seconds + coalesce(letter.nth / requeue_all.per_second, 0),
                    requeue_all.from_start);
                set constraints all immediate;
                restored := restored + was_there::integer;
            exception
                when others or assert_failure then
                    if not {schema}.is_rows_own(sqlstate) then
                        raise;
                    end if;
            end;
        end loop;
        exit when restored >= jobs_max or not has_more;
    end loop;
    return restored;
end
$$;
