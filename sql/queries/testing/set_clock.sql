-- set_clock: let the clock of the open transaction stand at a time; the next one has its own again.
-- In:    a time as text; empty: the clock goes on.
-- Out:   what it was set to before.
select coalesce(current_setting('pgnotifyq.clock', true), '') as was, set_config('pgnotifyq.clock', $1, true)
