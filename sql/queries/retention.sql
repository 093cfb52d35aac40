-- retention: how long finished jobs are kept, by queue and ending; what is said of every queue
-- first.
select r.queue_name, r.ending, r.keep_seconds, r.payload_seconds, r.result_seconds
from {schema}.retention as r
order by r.queue_name <> '*', r.queue_name, r.ending
