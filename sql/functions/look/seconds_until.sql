-- seconds_until: how far a time is away, in seconds, at most a thousand years each way.
--
-- Until PostgreSQL 16 infinity has no distance. An error here would fail all the rows of the
-- statement.
create or replace function {schema}.seconds_until(at timestamptz, time_now timestamptz) returns double precision
language sql immutable parallel safe
as $$
    select case when at is not null then
        extract(epoch from least(greatest(at, time_now - interval '1000 years'), time_now + interval '1000 years') - time_now)::float8 end
$$;
