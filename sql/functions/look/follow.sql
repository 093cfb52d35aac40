-- follow, follow_events, unfollow: have changes told (tell.sql) to a client that listens already:
-- of one job, of the jobs of a queue, or of all jobs. forget_followers: see there.
--
-- In:     follower_id   who follows: an id that the client has made, and that no other client uses
--         org_id        only what is this tenant's. A session that is confined to a tenant
--                       follows that one's, whatever it says
--         keep_seconds  how long the follower counts. The client asks again before that has passed
-- Out:    `new`; `kept`: it has followed without a gap until now; `full`: too many follow, and
--         nothing will be told, so the client is to look by itself
-- Locks:  the follower's row.
-- Rights: the owner's. Not everybody may see the followers: a channel is named after each.
--
-- Messages hold keys. What a client may see of the jobs is decided when it reads their rows. A
-- producer, which sees only what it enqueued, may follow a job and not a queue.
--
-- Each call of a function that changes jobs reads all followers, so there are at most 1,000.
create or replace function {schema}.follow(follower_id uuid, job_id uuid, keep_seconds double precision default 60)
returns text
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
begin
    return {schema}.note_follower(
        follow.follower_id, follow.job_id, null, case when {schema}.is_confined() then
            coalesce({schema}.current_org(), '00000000-0000-0000-0000-000000000000') end, follow.keep_seconds);
end
$$;

create or replace function {schema}.follow_events(
    follower_id uuid, queue_name text default null, org_id uuid default null, keep_seconds double precision default 60)
returns text
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
begin
    return {schema}.note_follower(
        follow_events.follower_id, null, follow_events.queue_name, case when {schema}.is_confined() then
            coalesce({schema}.current_org(), '00000000-0000-0000-0000-000000000000') else follow_events.org_id end,
        follow_events.keep_seconds);
end
$$;

create or replace function {schema}.note_follower(
    follower_id uuid, job_id uuid, queue_name text, org_id uuid, keep_seconds double precision)
returns text
language plpgsql volatile
as $$
#variable_conflict use_column
declare
    followers_max constant integer := 1000;
    time_now constant timestamptz := {schema}.clock();
    length constant interval := make_interval(secs => least(greatest(coalesce(keep_seconds, 60), 1), 600));
    was_until timestamptz;
    told text := 'kept';
begin
    perform set_config('synchronous_commit', 'off', true);
    perform set_config('pgnotifyq.tells', 'yes', true);
    select f.until into was_until from {schema}.followers as f where f.id = note_follower.follower_id;
    if coalesce(was_until, '-infinity') <= time_now then
        delete from {schema}.followers as f where f.until < time_now;
        told := case when (select count(*) from {schema}.followers) >= followers_max then 'full' else 'new' end;
    end if;
    if told <> 'full' and coalesce(was_until, '-infinity') < time_now + length / 2 then
        insert into {schema}.followers as f (id, org_id, job_id, queue_name, until)
        values (
            note_follower.follower_id, note_follower.org_id, note_follower.job_id, note_follower.queue_name, time_now + length)
        on conflict on constraint followers_pkey do update set until = excluded.until;
    end if;
    perform set_config('pgnotifyq.tells', '', true);
    return told;
end
$$;

create or replace function {schema}.unfollow(follower_id uuid) returns void
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
begin
    perform set_config('synchronous_commit', 'off', true);
    perform set_config('pgnotifyq.tells', 'yes', true);
    delete from {schema}.followers as f where f.id = unfollow.follower_id;
    perform set_config('pgnotifyq.tells', '', true);
end
$$;

-- forget_followers: empty the table of followers down to no page, if nobody follows any more.
--
-- A statement that changes jobs asks whether the table has a page (tell.sql). A row that is deleted
-- leaves its page. Only a vacuum takes the page away, and autovacuum passes over so few rows. So
-- each statement would go on looking for followers. Workers call this now and then, in a
-- transaction of its own.
--
-- Out:    whether the table was emptied. It is not while a follower counts, or while another
--         transaction that has looked into the table goes on; the next call may empty it.
-- Locks:  the table: first against another call of this function, without waiting; then wholly, for
--         a moment. Statements that change jobs wait for that: 50 ms at the most, if a long
--         transaction is in the way, else no longer than a truncate takes.
-- Rights: the owner's. Nobody else can truncate.
create or replace function {schema}.forget_followers() returns boolean
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
set lock_timeout = '50ms'
as $$
begin
    -- In any other isolation, this transaction does not see followers that have come since it
    -- began.
    if pg_relation_size('{schema}.followers') = 0 or current_setting('transaction_isolation') <> 'read committed' then
        return false;
    end if;
    perform set_config('pgnotifyq.tells', 'yes', true);
    begin
        lock table {schema}.followers in share update exclusive mode nowait;
        if exists (select from {schema}.followers as f where f.until > {schema}.clock()) then
            perform set_config('pgnotifyq.tells', '', true);
            return false;
        end if;
        lock table {schema}.followers in access exclusive mode;
        if exists (select from {schema}.followers as f where f.until > {schema}.clock()) then
            perform set_config('pgnotifyq.tells', '', true);
            return false;
        end if;
        truncate {schema}.followers;
    exception
        when lock_not_available then
            perform set_config('pgnotifyq.tells', '', true);
            return false;
    end;
    perform set_config('pgnotifyq.tells', '', true);
    return true;
end
$$;

revoke all on function {schema}.forget_followers() from public;
revoke all on function {schema}.follow(uuid, uuid, double precision) from public;
revoke all on function {schema}.follow_events(uuid, text, uuid, double precision) from public;
revoke all on function {schema}.unfollow(uuid) from public;
