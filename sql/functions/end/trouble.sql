-- note_trouble: put a job aside. It is looked at again after ten seconds, then after twice as long
-- each time, an hour at most.
--
-- In:     what could not be done (`verb`), and what the database or Python said of it. The text is
--         cut.
-- Out:    whether it is news: the first trouble of this kind with the job.
-- Locks:  the trouble's row.
create or replace function {schema}.note_trouble(org_id uuid, job_id uuid, verb text, state text, error_message text) returns boolean
language plpgsql volatile
set jit = off
set enable_seqscan = off
set enable_bitmapscan = off
as $$
#variable_conflict use_column
declare
    time_now timestamptz := {schema}.clock();
    tries_now integer;
begin
    insert into {schema}.job_troubles as t (org_id, job_id, verb, sqlstate, error_message, first_at, last_at, tries, look_at)
    values (
        note_trouble.org_id, note_trouble.job_id, note_trouble.verb, state, left(note_trouble.error_message, 1000), time_now, time_now, 1,
        time_now + interval '10 s')
    on conflict (org_id, job_id) do update
    set verb = excluded.verb,
        sqlstate = excluded.sqlstate,
        error_message = excluded.error_message,
        first_at = case when t.verb = excluded.verb then t.first_at else time_now end,
        last_at = time_now,
        tries = case when t.verb = excluded.verb then least(t.tries, 1000000) + 1 else 1 end,
        look_at = time_now + case when t.verb = excluded.verb
            then least(interval '10 s' * 2 ^ least(t.tries, 12), interval '1 hour') else interval '10 s' end
    returning t.tries into tries_now;
    return tries_now = 1;
end
$$;

-- is_in_trouble: whether a job was put aside, and its time has not come yet. Ask it only where
-- job_troubles holds rows at all.
create or replace function {schema}.is_in_trouble(org_id uuid, job_id uuid, time_now timestamptz) returns boolean
language sql stable
as $$
    select exists (
        select from {schema}.job_troubles as t
        where t.org_id = is_in_trouble.org_id and t.job_id = is_in_trouble.job_id and t.look_at > time_now)
$$;

-- is_rows_own: whether an error that a row's own subtransaction raised is caused by that row. The
-- errors of a broken session are not, nor those of a server that is full, ending or broken. All
-- others are: those of constraints and triggers of the user's, whatever their class; also a
-- deadlock, or a lock that could not be had (40, 55), because only this row waited for it.
create or replace function {schema}.is_rows_own(state text) returns boolean
language sql immutable
as $$ select left(state, 2) not in ('08', '25', '26', '28', '3D', '53', '57', '58') $$;

-- refuse_unwritten: raise an error for an update or delete of a job that wrote nothing, although
-- the row was locked and its fence held.
create or replace function {schema}.refuse_unwritten() returns void
language plpgsql
as $$
begin
    raise exception 'the row was not written, and nothing was said: a trigger or rule of yours on the table leaves it out'
        using errcode = 'PNQ06';
end
$$;

-- forget_troubles: delete the troubles that are over: the job is gone, or is no longer what the
-- trouble's verb is about.
create or replace function {schema}.forget_troubles() returns void
language plpgsql volatile
set jit = off
as $$
begin
    delete from {schema}.job_troubles as t
    where t.look_at <= {schema}.clock() and not exists (
        select from {schema}.jobs as j
        where j.id = t.job_id and case
            when t.execution_id is not null then j.current_execution_id = t.execution_id
            when t.verb = 'claim' then j.is_claimable
            when t.verb = 'reclaim' then j.is_held or j.suspicion = 'parked'
            else true end);
end
$$;
