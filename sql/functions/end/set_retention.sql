-- set_retention: say how long the finished jobs of a queue are kept, whatever workers are set to;
-- and how long their payloads and results are, if that is shorter.
--
-- In:     `queue_name` is a queue, or `*`: every queue, where its own row says nothing.
--         `ending` completed, cancelled or dead; null: completed and cancelled, because people who
--         speak of finished jobs do not mean dead letters.
--         `keep_seconds`, `payload_seconds`, `result_seconds` from a job's end on; null: not said.
--         The row is written whole. If all three are null, the row is deleted; with a null
--         `ending`, the rows of all endings are.
-- Errors: what is out of range is refused with PNQ02.
create or replace function {schema}.set_retention(
    queue_name text, keep_seconds double precision default null, ending text default null,
    payload_seconds double precision default null, result_seconds double precision default null)
returns void
language plpgsql volatile
as $$
#variable_conflict use_column
declare
    wrong record;
begin
    if set_retention.queue_name is null or set_retention.queue_name !~ '^([A-Za-z0-9_][A-Za-z0-9_.:-]{{0,62}}|[*])$' then
        raise exception 'queue name % is not valid', quote_nullable(set_retention.queue_name)
            using errcode = 'PNQ02', hint = 'Use 1 to 63 letters, digits and _ . : - (not first: . : -); or *, which is every queue.';
    end if;
    if set_retention.ending not in ('completed', 'cancelled', 'dead') then
        raise exception 'ending % is not known', quote_literal(set_retention.ending)
            using errcode = 'PNQ02', hint = 'Use completed, cancelled, dead, or null for completed and cancelled.';
    end if;
    for wrong in
        select t.name, t.seconds
        from (values ('keep_seconds', set_retention.keep_seconds), ('payload_seconds', set_retention.payload_seconds),
            ('result_seconds', set_retention.result_seconds)) as t(name, seconds)
        where t.seconds not between 0 and 3155760000
    loop
        raise exception '% % is out of range', wrong.name, wrong.seconds
            using errcode = 'PNQ02', hint = 'Use 0 to 3155760000, a hundred years; null: say nothing.';
    end loop;
    if set_retention.ending = 'dead' and set_retention.result_seconds is not null then
        raise exception 'a dead letter has no result' using errcode = 'PNQ02', hint = 'Leave result_seconds out.';
    end if;
    if num_nonnulls(set_retention.keep_seconds, set_retention.payload_seconds, set_retention.result_seconds) = 0 then
        delete from {schema}.retention as r
        where r.queue_name = set_retention.queue_name
          and (set_retention.ending is null or r.ending = set_retention.ending);
        return;
    end if;
    insert into {schema}.retention as r (queue_name, ending, keep_seconds, payload_seconds, result_seconds)
    select set_retention.queue_name, e.ending, set_retention.keep_seconds, set_retention.payload_seconds, set_retention.result_seconds
    from unnest(array['completed', 'cancelled', 'dead']) as e(ending)
    where e.ending = set_retention.ending or (set_retention.ending is null and e.ending <> 'dead')
    on conflict (queue_name, ending) do update
    set keep_seconds = excluded.keep_seconds, payload_seconds = excluded.payload_seconds, result_seconds = excluded.result_seconds;
end
$$;

-- kept: how long the jobs of a queue that ended in some way are kept, and their payloads and
-- results. One row. Null: nothing is said.
--
-- Index:  retention_pkey.
create or replace function {schema}.kept(queue_name text, ending text)
returns table (keep_seconds double precision, payload_seconds double precision, result_seconds double precision)
language sql stable
as $$
    select coalesce(q.keep_seconds, a.keep_seconds), coalesce(q.payload_seconds, a.payload_seconds),
        coalesce(q.result_seconds, a.result_seconds)
    from (select) as one
    left join {schema}.retention as q on q.queue_name = kept.queue_name and q.ending = kept.ending
    left join {schema}.retention as a on a.queue_name = '*' and a.ending = kept.ending
$$;
