-- set_retention: say how long the finished jobs of a queue are kept, whatever workers are set to.
--
-- In:     `keep_seconds` null: nothing is said any more, and the settings of the queue's workers
--         count. `ending` completed, cancelled, or null: both.
-- Errors: what is out of range is refused with PNQ02.
create or replace function {schema}.set_retention(queue_name text, keep_seconds double precision, ending text default null)
returns void
language plpgsql volatile
as $$
#variable_conflict use_column
begin
    if set_retention.queue_name is null or set_retention.queue_name !~ '^[A-Za-z0-9_][A-Za-z0-9_.:-]{{0,62}}$' then
        raise exception 'queue name % is not valid', quote_nullable(set_retention.queue_name)
            using errcode = 'PNQ02', hint = 'Use 1 to 63 letters, digits and _ . : - (not first: . : -).';
    end if;
    if set_retention.ending not in ('completed', 'cancelled') then
        raise exception 'ending % is not known', quote_literal(set_retention.ending)
            using errcode = 'PNQ02', hint = 'Use completed, cancelled, or null for both.';
    end if;
    if set_retention.keep_seconds not between 0 and 3155760000 then
        raise exception 'keep_seconds % is out of range', set_retention.keep_seconds
            using errcode = 'PNQ02', hint = 'Use 0 to 3155760000, a hundred years; null: say nothing.';
    end if;
    if set_retention.keep_seconds is null then
        delete from {schema}.retention as r
        where r.queue_name = set_retention.queue_name
          and (set_retention.ending is null or r.ending = set_retention.ending);
        return;
    end if;
    insert into {schema}.retention as r (queue_name, ending, keep_seconds)
    select set_retention.queue_name, e.ending, set_retention.keep_seconds
    from unnest(array['completed', 'cancelled']) as e(ending)
    where set_retention.ending is null or e.ending = set_retention.ending
    on conflict (queue_name, ending) do update set keep_seconds = excluded.keep_seconds;
end
$$;
