-- notify: send a notification, unless the server's queue of notifications is nearly full.
--
-- Any role that may connect can fill the queue: it listens, and sits in a transaction, while it
-- sends. Then the commit of whoever notifies fails. Without the notification it goes on: a worker
-- does not hear its own proof either, and polls until the queue has room again.
create or replace function {schema}.notify(channel text, payload text) returns void
language plpgsql volatile
as $$
begin
    if pg_notification_queue_usage() < 0.9 then
        perform pg_notify(channel, payload);
    end if;
end
$$;
