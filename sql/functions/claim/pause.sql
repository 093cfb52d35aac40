-- pause, resume: nothing of a queue, of a job type, or nothing at all becomes running until it is
-- resumed. What runs goes on.
--
-- In:     one of the three: a queue, a job type, `everything`. Who pauses it, else the role that is
--         connected; and why.
-- Out:    pause: whether it was not paused before; a pause that was there gets the new `who` and
--         `why`. resume: whether it was paused.
-- Errors: what is out of range, or not one of the three, is refused with PNQ02.
-- Locks:  the row of the pause.
--
-- A pause counts for each claim that begins after its commit, on every worker: claims read it
-- (admit). A resume of a queue wakes the workers that sleep on it. A resume of a type or of
-- everything wakes workers that sleep on any queue. The deletion comes first, so that the
-- transaction has its id before it looks for sleepers; the protocol of pgnotifyq/runtime/sleep.py
-- asks for that.
create or replace function {schema}.pause(
    queue_name text default null, job_type text default null, everything boolean default false, why text default null,
    who text default null)
returns boolean
language plpgsql volatile
as $$
declare
    wanted text := {schema}.pause_scope(pause.queue_name, pause.job_type, pause.everything);
    is_new boolean;
begin
    insert into {schema}.pauses as p (scope, name, who, why)
    values (
        wanted, coalesce(pause.queue_name, pause.job_type, ''), left(coalesce(pause.who, session_user), 200),
        left(pause.why, 1000))
    on conflict on constraint pauses_pkey do update set who = excluded.who, why = excluded.why
    returning p.xmax = 0 into is_new;
    return is_new;
end
$$;

create or replace function {schema}.resume(
    queue_name text default null, job_type text default null, everything boolean default false)
returns boolean
language plpgsql volatile
as $$
declare
    wanted text := {schema}.pause_scope(resume.queue_name, resume.job_type, resume.everything);
    was_paused boolean;
begin
    delete from {schema}.pauses as p
    where p.scope = wanted and p.name = coalesce(resume.queue_name, resume.job_type, '');
    was_paused := found;
    if was_paused then
        perform {schema}.wake(q.name, {schema}.clock(), 64)
        from (
            select resume.queue_name as name
            where resume.queue_name is not null
            union
            select unnest(w.queues)
            from {schema}.worker_heartbeats as w
            where resume.queue_name is null
        ) as q;
    end if;
    return was_paused;
end
$$;

-- pause_scope: which of the three is meant.
create or replace function {schema}.pause_scope(queue_name text, job_type text, everything boolean) returns text
language plpgsql immutable
as $$
begin
    if num_nonnulls(queue_name, job_type, nullif(everything, false)) <> 1 then
        raise exception 'say one of a queue, a job type and everything'
            using errcode = 'PNQ02', hint = 'For example queue_name => ''images''.';
    end if;
    if queue_name !~ '^[A-Za-z0-9_][A-Za-z0-9_.:-]{{0,62}}$' then
        raise exception 'queue name % is not valid', quote_literal(queue_name)
            using errcode = 'PNQ02', hint = 'Use 1 to 63 letters, digits and _ . : - (not first: . : -).';
    end if;
    if job_type !~ '^[A-Za-z0-9_][A-Za-z0-9_.:-]{{0,126}}$' then
        raise exception 'job type % is not valid', quote_literal(job_type)
            using errcode = 'PNQ02', hint = 'Use 1 to 127 letters, digits and _ . : - (not first: . : -).';
    end if;
    return case when queue_name is not null then 'queue' when job_type is not null then 'job_type' else 'everything' end;
end
$$;

-- first_held: a job of a queue, of a job type or of everything that a worker holds. Null: there is
-- none. When the job ends or is given back, that is announced on `<schema>_finished`.
--
-- Index:  jobs_held.
-- Locks:  the job.
create or replace function {schema}.first_held(queue_name text, job_type text) returns uuid
language plpgsql volatile
set jit = off
set enable_seqscan = off
set enable_bitmapscan = off
as $$
#variable_conflict use_column
declare
    held_id uuid;
begin
    loop
        select j.id into held_id
        from {schema}.jobs as j
        where j.is_held and (first_held.queue_name is null or j.queue_name = first_held.queue_name)
          and (first_held.job_type is null or j.job_type = first_held.job_type)
        order by j.started_at
        limit 1;
        if not found or {schema}.await_release(held_id) then
            return held_id;
        end if;
    end loop;
end
$$;

-- await_release: have it announced when a worker lets go of a job.
--
-- Out:    whether a worker still holds the job.
create or replace function {schema}.await_release(job_id uuid) returns boolean
language plpgsql volatile
set jit = off
set enable_seqscan = off
set enable_bitmapscan = off
as $$
begin
    update {schema}.jobs as j set awaited = true where j.id = await_release.job_id and j.is_held and not j.awaited;
    return found or exists (select from {schema}.jobs as j where j.id = await_release.job_id and j.is_held);
end
$$;
