-- A wake-up for a single job names it, so that the worker can take it by its key (sql/functions/claim_named.sql). Otherwise as before.
create or replace function {schema}.wake_after_insert() returns trigger
language plpgsql
as $$
begin
    if current_setting('transaction_isolation') = 'read committed'
       and not exists (select from {schema}.sleepers)
    then
        return null;
    end if;
    perform {schema}.wake(q.queue_name, q.due_at, q.jobs, case when q.jobs = 1 then q.job end)
    from (
        select i.queue_name, min(i.scheduled_at) as due_at, count(*) as jobs, min(i.id::text) as job
        from inserted as i
        where i.status = 'pending'
        group by i.queue_name
    ) as q;
    return null;
end
$$;
