-- wake: tell sleepers of one queue of `jobs` jobs due at `due_at`. See runtime/sleep.py.
--
-- Two at the least: one may be on its way out. The rest follow by themselves, for a claim that leaves due work behind
-- wakes others (claim.sql). Whoever has promised to look before that time anyway is left alone; a promise whose time has
-- passed counts for nothing. Under repeatable read the list of sleepers may be as old as the transaction, so there
-- everybody is told.
--
-- `job` is the one it is about, when there is one, which a worker may take by its key (runtime/named.py). A transaction names the
-- first that is due, and no more: the wake-ups for all others are alike, so that PostgreSQL merges them.
-- Its earlier form, without `job`: beside this one, a call that leaves that out would fit both.
drop function if exists {schema}.wake(text, timestamptz, bigint);
create or replace function {schema}.wake(queue text, due_at timestamptz, jobs bigint, job text default null) returns void
language plpgsql volatile
as $$
declare
    time_now timestamptz := {schema}.clock();
begin
    if current_setting('transaction_isolation') <> 'read committed' then
        perform pg_notify({schema_text} || '_work', queue);
        return;
    end if;
    if due_at > time_now or current_setting('pgnotifyq.has_named', true) = 'yes' then
        job := null;
    elsif job is not null then
        perform set_config('pgnotifyq.has_named', 'yes', true);
    end if;
    perform pg_notify({schema}.worker_channel(s.worker_id), concat_ws(' ', 'work', queue, job))
    from (
        select sleeper.worker_id
        from {schema}.sleepers as sleeper
        where sleeper.queue_name = queue
          and (due_at <= time_now or sleeper.expects_at > due_at or sleeper.expects_at <= time_now)
        order by random()
        limit greatest(2, least(jobs, 64))
    ) as s;
end
$$;
