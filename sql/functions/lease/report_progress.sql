-- report_progress: how far an execution has come. Fenced; a heap-only update that need not reach
-- the disk.
create or replace function {schema}.report_progress(job_id uuid, execution_id uuid, fraction real, message text) returns boolean
language plpgsql volatile
set jit = off
set enable_seqscan = off
set enable_bitmapscan = off
as $$
begin
    perform set_config('synchronous_commit', 'off', true);
    update {schema}.jobs as j
    set progress = fraction, progress_message = left(message, 1000)
    where j.id = report_progress.job_id and j.current_execution_id = report_progress.execution_id;
    return found;
end
$$;
