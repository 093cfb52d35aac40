-- await_job: have the end of a job announced on `<schema>_finished`, for a client that listens
-- there already.
--
-- Out:    whether the job is still to end. A completion notifies nobody unless a client waits for
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

-- announce_end: tell those who wait for a job that it has ended, or that a worker let go of it.
--
-- The next run of the job's schedule may wait, too. Then workers are told as well, and call
-- start_waiting. If no schedule ever had a tick, this costs only a look at the size of an empty
-- table. A role that may not read ticks tells no worker; then the next tick looks again.
create or replace function {schema}.announce_end(job_id uuid) returns void
language plpgsql volatile
as $$
begin
    perform {schema}.notify({schema_text} || '_finished', announce_end.job_id::text);
    if pg_relation_size('{schema}.schedule_ticks') > 0 and has_table_privilege('{schema}.schedule_ticks', 'select')
        and {schema}.has_waiting_run(announce_end.job_id)
    then
        perform {schema}.notify({schema_text} || '_work', '+schedules');
    end if;
end
$$;
