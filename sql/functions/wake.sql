-- wake: tell sleepers of one queue of `jobs` jobs due at `due_at`. See runtime/sleep.py.
--
-- Two at the least: one may be on its way out. The rest follow by themselves, for a claim that leaves due work behind
-- wakes others (claim.sql). Whoever has promised to look before that time anyway is left alone; a promise whose time has
-- passed counts for nothing. Under repeatable read the list of sleepers may be as old as the transaction, so there
-- everybody is told.
create or replace function {schema}.wake(queue text, due_at timestamptz, jobs bigint) returns void
language plpgsql volatile
as $$
declare
    time_now timestamptz := {schema}.clock();
begin
    if current_setting('transaction_isolation') <> 'read committed' then
        perform pg_notify({schema_text} || '_work', queue);
        return;
    end if;
    perform pg_notify({schema}.worker_channel(s.worker_id), 'work ' || queue)
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
