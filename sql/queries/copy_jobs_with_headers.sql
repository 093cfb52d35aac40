-- copy_jobs_with_headers: what copy_jobs does, of jobs that have headers. It is a statement apart:
-- otherwise each line would have this column, even where no job has headers.
copy {schema}.jobs (
    id, org_id, queue_name, job_type, payload, priority, scheduled_at, max_attempts, created_at, queue_not_said, headers) from stdin
