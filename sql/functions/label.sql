-- label: the word that people read: a job's status, or scheduled, retrying or stopping (sql/README.md, States). By the database's clock.
create or replace function {schema}.label(
    status text, is_held boolean, attempts integer, scheduled_at timestamptz, time_now timestamptz)
returns text
language sql immutable parallel safe
as $$
    select case
        when status = 'cancelled' and is_held then 'stopping'
        when status = 'pending' and scheduled_at > time_now and attempts > 0 then 'retrying'
        when status = 'pending' and scheduled_at > time_now then 'scheduled'
        else status end
$$;

-- seconds_between: how long it is from one time to another; infinity where one is. Until PostgreSQL 17 nothing can be subtracted from that.
create or replace function {schema}.seconds_between(earlier timestamptz, later timestamptz) returns double precision
language sql immutable parallel safe
as $$
    select case
        when isfinite(earlier) and isfinite(later) then extract(epoch from later - earlier)::double precision
        when later > earlier then 'infinity'::double precision
        when later < earlier then '-infinity'::double precision
        when later = earlier then 0 end
$$;
