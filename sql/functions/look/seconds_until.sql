-- seconds_until: how far a time is away, in seconds, bounded to a thousand years each way: until PostgreSQL 16 infinity has no distance, and an
-- error here would be that of all the rows beside it.
create or replace function {schema}.seconds_until(at timestamptz, time_now timestamptz) returns double precision
language sql immutable parallel safe
as $$
    select case when at is not null then
        extract(epoch from least(greatest(at, time_now - interval '1000 years'), time_now + interval '1000 years') - time_now)::float8 end
$$;
