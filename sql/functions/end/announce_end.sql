-- announce_end: tell those who await a job that it has ended: clients, on `<schema>_finished`, and
-- the schedule whose next run waits for this one, on `<schema>_work`.
--
-- Where no schedule ever had a tick, the second costs the size of an empty table.
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
