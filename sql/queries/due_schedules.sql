-- due_schedules: what a worker has to know of the schedules that come next, the first at the head.
-- Those that have no tick any more are left out.
--
-- Index: schedules_due.
select {schema}.clock() as time_now, s.id as schedule_id, s.name, s.rule, s.tz, s.exclude, s.missed, s.overlap,
    s.window_seconds, s.next_at, s.due_at, s.done_to, s.version
from {schema}.schedules as s
where s.paused_at is null and (s.due_at is null or s.due_at < 'infinity')
order by s.due_at nulls first, s.name
limit $1::integer
