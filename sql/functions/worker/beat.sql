-- beat: a sign of life. A worker whose session is gone or silent sends it by another session.
--
-- Out:    whether the beat counts. False: the row is gone, or others have given the worker up. Then
--         the worker has lost what it held, and registers anew.
-- Locks:  the worker's row. A watcher that gives the worker up locks it too. So one of the two
--         comes first, and the other learns of it.
--
-- `heartbeat` clears the suspicion, too. But it does not say whether it came too late.
create or replace function {schema}.beat(worker_id uuid) returns boolean
language plpgsql volatile
as $$
#variable_conflict use_column
begin
    perform set_config('synchronous_commit', 'off', true);
    update {schema}.worker_heartbeats as w
    set last_beat_at = {schema}.clock(), session_lost_at = null
    where w.worker_id = beat.worker_id and w.dead_since is null;
    return found;
end
$$;
