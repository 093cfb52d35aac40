-- schedule: have jobs of a kind enqueued by a rule; or change what a schedule of that name says.
--
-- In:     `name`     at most one schedule of a tenant has it
--         `rule`     when; pgnotifyq/model/schedule.py says what there is. A worker reads it. If it
--                    cannot, it says so in `error_message`.
--         `owner`    the program whose code has the schedule. Null: somebody makes it by hand.
--         The rest is as of the columns of `schedules`.
-- Out:    'created', 'changed', 'same'; 'refused': it is another program's.
-- Errors: what is out of range is refused with PNQ02.
-- Locks:  the schedule's row.
--
-- A pause stays. If a program declares a schedule that was made by hand, the schedule becomes the
-- program's. If people have changed a program's schedule by hand, the change stays until the
-- program's next worker starts.
create or replace function {schema}.schedule(
    name text, rule text, job_type text, payload jsonb default '{{}}',
    org_id uuid default '00000000-0000-0000-0000-000000000000', tz text default 'UTC', exclude text default '',
    missed text default 'last', window_seconds double precision default null, overlap text default 'skip',
    jitter_seconds double precision default 0, queue_name text default null, priority integer default 0,
    max_attempts integer default null, owner text default null)
returns text
language plpgsql volatile
as $$
#variable_conflict use_column
declare
    was {schema}.schedules;
begin
    insert into {schema}.schedules as s (
        name, rule, job_type, payload, org_id, tz, exclude, missed, window_seconds, overlap, jitter_seconds, queue_name,
        priority, max_attempts, owner)
    values (
        schedule.name, schedule.rule, schedule.job_type, coalesce(schedule.payload, '{{}}'),
        coalesce(schedule.org_id, '00000000-0000-0000-0000-000000000000'), coalesce(schedule.tz, 'UTC'),
        coalesce(schedule.exclude, ''), coalesce(schedule.missed, 'last'), schedule.window_seconds,
        coalesce(schedule.overlap, 'skip'), coalesce(schedule.jitter_seconds, 0), schedule.queue_name,
        coalesce(schedule.priority, 0), schedule.max_attempts, left(schedule.owner, 200))
    on conflict on constraint one_schedule_of_a_name do nothing;
    if found then
        return 'created';
    end if;
    select s.* into was
    from {schema}.schedules as s
    where s.org_id = coalesce(schedule.org_id, '00000000-0000-0000-0000-000000000000') and s.name = schedule.name
    for no key update;
    if was.owner is not null and schedule.owner is not null and was.owner <> left(schedule.owner, 200) then
        return 'refused';
    end if;
    update {schema}.schedules as s
    set rule = schedule.rule, job_type = schedule.job_type, payload = coalesce(schedule.payload, '{{}}'),
        tz = coalesce(schedule.tz, 'UTC'), exclude = coalesce(schedule.exclude, ''),
        missed = coalesce(schedule.missed, 'last'), window_seconds = schedule.window_seconds,
        overlap = coalesce(schedule.overlap, 'skip'), jitter_seconds = coalesce(schedule.jitter_seconds, 0),
        queue_name = schedule.queue_name, priority = coalesce(schedule.priority, 0),
        max_attempts = schedule.max_attempts, owner = coalesce(left(schedule.owner, 200), s.owner), unlisted_at = null
    where s.id = was.id
      and (s.rule, s.job_type, s.payload, s.tz, s.exclude, s.missed, s.window_seconds, s.overlap, s.jitter_seconds,
           s.queue_name, s.priority, s.max_attempts, s.owner, s.unlisted_at)
        is distinct from (
            schedule.rule, schedule.job_type, coalesce(schedule.payload, '{{}}'), coalesce(schedule.tz, 'UTC'),
            coalesce(schedule.exclude, ''), coalesce(schedule.missed, 'last'), schedule.window_seconds,
            coalesce(schedule.overlap, 'skip'), coalesce(schedule.jitter_seconds, 0), schedule.queue_name,
            coalesce(schedule.priority, 0), schedule.max_attempts, coalesce(left(schedule.owner, 200), s.owner),
            null::timestamptz);
    return case when found then 'changed' else 'same' end;
exception
    when check_violation or not_null_violation then
        raise exception 'the schedule % is not valid: %', left(quote_nullable(schedule.name), 200), sqlerrm
            using errcode = 'PNQ02', hint = 'docs/schedules.md says what a schedule may say.';
end
$$;

-- unlist_schedules: note which schedules of a program its code does not have any more. They go on,
-- and doctor tells of them.
--
-- In:     `owner`, and the names of those that its code has (`schedule_names`).
-- Out:    how many were noted now.
create or replace function {schema}.unlist_schedules(owner text, schedule_names text[]) returns integer
language plpgsql volatile
as $$
#variable_conflict use_column
declare
    noted integer;
begin
    update {schema}.schedules as s
    set unlisted_at = {schema}.clock()
    where s.owner = unlist_schedules.owner and s.unlisted_at is null
      and not s.name = any (coalesce(unlist_schedules.schedule_names, '{{}}'));
    get diagnostics noted = row_count;
    return noted;
end
$$;

-- unschedule: delete a schedule. Jobs that it has enqueued stay.
--
-- Out:    whether there was one.
create or replace function {schema}.unschedule(
    name text, org_id uuid default '00000000-0000-0000-0000-000000000000')
returns boolean
language plpgsql volatile
as $$
#variable_conflict use_column
begin
    delete from {schema}.schedules as s where s.name = unschedule.name and s.org_id = unschedule.org_id;
    return found;
end
$$;

-- pause_schedule, resume_schedule: a schedule has no ticks while it is paused, and those of that
-- time are not missed.
--
-- Out:    whether there was one to pause, or to resume. A schedule that was paused before gets the
--         new `who` and `why`.
create or replace function {schema}.pause_schedule(
    name text, org_id uuid default '00000000-0000-0000-0000-000000000000', why text default null, who text default null)
returns boolean
language plpgsql volatile
as $$
#variable_conflict use_column
begin
    update {schema}.schedules as s
    set paused_at = coalesce(s.paused_at, {schema}.clock()), why = left(pause_schedule.why, 1000),
        who = left(coalesce(pause_schedule.who, session_user), 200)
    where s.name = pause_schedule.name and s.org_id = pause_schedule.org_id;
    return found;
end
$$;

create or replace function {schema}.resume_schedule(
    name text, org_id uuid default '00000000-0000-0000-0000-000000000000')
returns boolean
language plpgsql volatile
as $$
#variable_conflict use_column
begin
    update {schema}.schedules as s
    set paused_at = null, why = null, who = null
    where s.name = resume_schedule.name and s.org_id = resume_schedule.org_id and s.paused_at is not null;
    return found;
end
$$;
