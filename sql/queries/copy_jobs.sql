-- copy_jobs: a large batch of jobs without unique keys, written by the client as insert_jobs would
-- write them.
copy {schema}.jobs (id, org_id, queue_name, job_type, payload, priority, scheduled_at, max_attempts, created_at, queue_not_said) from stdin
