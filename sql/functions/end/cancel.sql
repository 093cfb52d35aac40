-- cancel: ask a job to stop. A door to `update jobs set status = 'cancelled'` that says what
-- happened.
--
-- Out:    'cancelled'  it was pending and will never start
--         'stopping'   its handler has been told and has not ended yet
--         'finished'   it had ended before (completed, cancelled, or dead)
--         'unknown'    there is no such job (of this tenant)
create or replace function {schema}.cancel(job_id uuid, why text default null) returns text
language plpgsql volatile
set jit = off
set enable_seqscan = off
set enable_bitmapscan = off
as $$
declare
    execution_id uuid;
begin
    update {schema}.jobs as j
    set status = 'cancelled', error_message = coalesce(left(why, 1000), 'cancelled')
    where j.id = cancel.job_id and j.status in ('pending', 'running')
    returning j.current_execution_id into execution_id;
    if found then
        return case when execution_id is not null then 'stopping' else 'cancelled' end;
    end if;
    select j.current_execution_id into execution_id from {schema}.jobs as j where j.id = cancel.job_id;
    if found then
        return case when execution_id is not null then 'stopping' else 'finished' end;
    end if;
    perform from {schema}.dead_letter_jobs as d where d.id = cancel.job_id;
    return case when found then 'finished' else 'unknown' end;
end
$$;
