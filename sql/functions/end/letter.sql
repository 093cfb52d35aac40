-- letter_id: the id of the dead letter of a job. It is the job's own, unless an older letter has
-- that id: somebody has copied a letter back into `jobs` by hand, and the job died again; or has
-- inserted a job under the id of a letter. Then both letters are kept, the newer under an id of its
-- own.
--
-- If a payload is larger than 4 MiB as it is stored, its job is not moved, but put aside: 200 MB
-- took 20 seconds, in the way of all others. The doors admit 1 MiB. A cancel ends such a job,
-- because a cancelled job stays where it is.
create or replace function {schema}.letter_id(job_id uuid, payload_bytes integer) returns uuid
language plpgsql volatile
as $$
#variable_conflict use_column
begin
    if payload_bytes > 4194304 then
        raise exception 'a payload of % bytes is not moved to the dead letters', payload_bytes
            using errcode = 'program_limit_exceeded', hint = 'Cancel the job, or delete it.';
    end if;
    return case when exists (select from {schema}.dead_letter_jobs as d where d.id = letter_id.job_id)
        then {schema}.new_id() else letter_id.job_id end;
end
$$;

-- letter_error: the last error of a dead letter, and the job's own id where the letter has another.
create or replace function {schema}.letter_error(letter_id uuid, job_id uuid, error_message text) returns text
language sql immutable
as $$
    select case when letter_id = job_id then error_message
        else concat_ws(E'\n', error_message, format('(it was job %s; an older dead letter has that id)', job_id)) end
$$;
