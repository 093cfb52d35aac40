-- label: the word that people read for a job's state. It is the status, or scheduled, retrying or
-- stopping (sql/README.md, States), by the database's clock.
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
