-- waiting_schedules: the schedules that have a run that waits for the one before.
--
-- Index: schedule_ticks_unended, read whole: it holds what has not ended.
select distinct t.schedule_id
from {schema}.schedule_ticks as t
where t.state = 'waiting'
order by t.schedule_id
limit $1::integer
