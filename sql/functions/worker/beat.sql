-- beat: a sign of life, from a worker whose session is gone or silent, by another one.
--
-- Out:    whether it counts. False: the row is gone, or others have given the worker up; it has lost what it held and registers.
-- Locks:  the worker's row. Whoever gives the worker up holds it too, so one of the two comes first, and the other learns of it.
--
-- `heartbeat` clears the suspicion too, but says nothing of whether it came too late.
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
