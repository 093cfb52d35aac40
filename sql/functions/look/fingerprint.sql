-- error_pattern, fingerprint: what errors of one kind have in common.
--
-- Of an error message the first line counts. Ids, numbers, addresses and what is in quotes are left
-- out: they differ from job to job.
create or replace function {schema}.error_pattern(error_message text) returns text
language sql immutable parallel safe
as $$
    select regexp_replace(regexp_replace(regexp_replace(
        split_part(left(coalesce(error_message, ''), 2000), E'\n', 1),
        '[0-9a-fA-F]{{8}}(-?[0-9a-fA-F]{{4}}){{3}}-?[0-9a-fA-F]{{12}}|0x[0-9a-fA-F]+', '<id>', 'g'),
        '"[^"]*"|''[^'']*''', '<text>', 'g'),
        '[0-9]+([.,:][0-9]+)*', '<n>', 'g')
$$;

create or replace function {schema}.fingerprint(error_message text) returns text
language sql immutable parallel safe
as $$ select lpad(to_hex(hashtextextended({schema}.error_pattern(error_message), 0)), 16, '0') $$;

-- letter_fits: whether a dead letter is of those that were asked for. Every filter may be null.
-- `error_text` is a part of the error message, in any case.
--
-- It is SQL of one expression, so that the planner puts the expression in its place.
create or replace function {schema}.letter_fits(
    letter {schema}.dead_letter_jobs, queue_name text, job_type text, org_id uuid, error_text text,
    died_after timestamptz, fingerprint text)
returns boolean
language sql stable
as $$
    select (letter_fits.queue_name is null or (letter).queue_name = letter_fits.queue_name)
        and (letter_fits.job_type is null or (letter).job_type = letter_fits.job_type)
        and (letter_fits.org_id is null or (letter).org_id = letter_fits.org_id)
        and (letter_fits.died_after is null or (letter).died_at > letter_fits.died_after)
        and (letter_fits.error_text is null
             or position(lower(letter_fits.error_text) in lower((letter).error_message)) > 0)
        and (letter_fits.fingerprint is null
             or {schema}.fingerprint((letter).error_message) = letter_fits.fingerprint)
$$;
