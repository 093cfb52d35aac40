-- release_all: give back, uncharged, all jobs that a worker still holds, and take its row away.
-- This is the last act of a process that is about to be ended because a handler does not let go. A
-- cancelled job is closed. A job that cannot be written is put aside, and released later.
create or replace function {schema}.release_all(worker_id uuid) returns integer
language plpgsql volatile
set jit = off
as $$
#variable_conflict use_column
declare
    job_ids uuid[];
    execution_ids uuid[];
begin
    select array_agg(j.id order by j.id), array_agg(j.current_execution_id order by j.id)
    into job_ids, execution_ids
    from {schema}.jobs as j
    where j.is_held and j.locked_by = release_all.worker_id
      -- What was put aside with its outcome is not released: it will end as it was meant.
      and not exists (
          select from {schema}.job_troubles as t
          where t.org_id = j.org_id and t.job_id = j.id and t.execution_id = j.current_execution_id);
    if job_ids is not null then
        perform from {schema}.settle_apart(
            release_all.worker_id, job_ids, execution_ids,
            array_fill('release'::text, array[cardinality(job_ids)]), array_fill('released'::text, array[cardinality(job_ids)]),
            array_fill(0::double precision, array[cardinality(job_ids)]),
            array_fill('the worker was ended'::text, array[cardinality(job_ids)]),
            array_fill(null::text, array[cardinality(job_ids)]), array_fill(null::text, array[cardinality(job_ids)]));
    end if;
    perform {schema}.unregister_worker(release_all.worker_id);
    return coalesce(cardinality(job_ids), 0);
end
$$;
