-- copy_jobs_with_headers: what copy_jobs does, of jobs that have headers. It is apart, for else the
-- column would take part of every line where no job has any.
copy {schema}.jobs (
    id, org_id, queue_name, job_type, payload, priority, scheduled_at, max_attempts, created_at, queue_not_said, headers) from stdin
