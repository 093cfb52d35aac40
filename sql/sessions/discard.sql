-- discard: what `discard all` does, but for the plans of functions. Those hold nothing of
-- anybody's, and to make them anew doubled the time of a handler's next transaction. One message,
-- so it is done whole.
close all;
set session authorization default;
reset all;
deallocate all;
unlisten *;
select pg_advisory_unlock_all();
discard temp;
discard sequences
