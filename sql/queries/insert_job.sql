-- insert_job: one job without a unique key; the client has checked the values (model/new_job.py).
--
-- insert_jobs does the same for a batch. For one job it takes twice as long: it unpacks nine
-- arrays. A queue that is null was not said: the handler's is taken, if one is known
-- (functions/worker/handlers.sql).
insert into {schema}.jobs (id, org_id, queue_name, job_type, payload, priority, scheduled_at, max_attempts, queue_not_said, headers)
select $1::uuid, $2::uuid, coalesce($3::text, k.queue_name, 'default'), $4::text, $5::jsonb, $6::smallint,
    coalesce($7::timestamptz, {schema}.clock() + make_interval(secs => coalesce($8::float8, 0))), $9::integer,
    $3::text is null and k.queue_name is null, $10::jsonb
from (select case when $3::text is null then {schema}.queue_of($4::text) end as queue_name offset 0) as k
