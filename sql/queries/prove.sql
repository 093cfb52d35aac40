-- prove: send a listener the proof that it hears, unless the server's queue of notifications is
-- full (functions/worker/notify.sql).
-- In: $1 channel, $2 payload. Out: whether the queue had room.
select n.had_room
from (select pg_notification_queue_usage() < 0.9 as had_room, {schema}.notify($1::text, $2::text)) as n
