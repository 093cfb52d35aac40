-- discard: what `discard all` does, but for the plans of functions. The plans hold nothing of
-- anybody's, and making them anew doubled the time of a handler's next transaction. The statements
-- are one message, so all of them are done.
close all;
set session authorization default;
reset all;
deallocate all;
unlisten *;
select pg_advisory_unlock_all();
discard temp;
discard sequences
