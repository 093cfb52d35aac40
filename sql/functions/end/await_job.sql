-- await_job: have the end of a job announced on `<schema>_finished`, for a client that listens
-- there already.
--
-- Out:    whether the job is still to end. A completion notifies nobody unless somebody waits for
--         it.
create or replace function {schema}.await_job(job_id uuid) returns boolean
language plpgsql volatile
set jit = off
set enable_seqscan = off
set enable_bitmapscan = off
as $$
begin
    update {schema}.jobs as j set awaited = true
    where j.id = await_job.job_id and not j.awaited and (j.status in ('pending', 'running') or j.is_held);
    if found then
        return true;
    end if;
    perform from {schema}.jobs as j
    where j.id = await_job.job_id and (j.status in ('pending', 'running') or j.is_held);
    return found;
end
$$;
