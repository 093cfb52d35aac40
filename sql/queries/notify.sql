-- notify: send a notification. In: $1 channel, $2 payload. Anybody may: it needs no right.
select pg_notify($1::text, $2::text)
