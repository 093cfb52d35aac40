-- letter_id: the id of the dead letter of a job. It is the job's own, but where an older letter has it: a letter was copied back into `jobs`
-- by hand, and died again; or a job was inserted under the id of a letter. Then both are kept, the newer under an id of its own.
create or replace function {schema}.letter_id(of_job uuid) returns uuid
language sql volatile
as $$
    select case when exists (select from {schema}.dead_letter_jobs as d where d.id = of_job) then {schema}.new_id() else of_job end
$$;

-- letter_error: the last error of a dead letter, and the job's own id where the letter has another.
create or replace function {schema}.letter_error(letter uuid, of_job uuid, error text) returns text
language sql immutable
as $$
    select case when letter = of_job then error
        else concat_ws(E'\n', error, format('(it was job %s; an older dead letter has that id)', of_job)) end
$$;
