-- notify: send a notification, unless the server's queue of notifications is nearly full.
--
-- Any role that may connect can fill the queue: it listens, and sits in a transaction, while it
-- sends. Then the commit of whoever notifies fails. Without the notification it goes on: a worker
-- does not hear its own proof either, and polls until the queue has room again.
--
-- The end of a job may be what the next run of its schedule waits for. Then workers are told too.
-- Where no schedule ever had a tick, that costs the size of an empty table.
create or replace function {schema}.notify(channel text, payload text) returns void
language plpgsql volatile
as $$
begin
    if pg_notification_queue_usage() < 0.9 then
        perform pg_notify(channel, payload);
        if channel = {schema_text} || '_finished' and pg_relation_size('{schema}.schedule_ticks') > 0
            and has_table_privilege('{schema}.schedule_ticks', 'select') and {schema}.has_waiting_run(payload::uuid)
        then
            perform pg_notify({schema_text} || '_work', '+schedules');
        end if;
    end if;
end
$$;
