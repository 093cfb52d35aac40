-- admit: leave out of a claim's look what is paused. This is the part of the one rule
-- (may_start.sql) that does not depend on a row. Each statement that makes a job running asks it
-- first.
--
-- In:     the queues and the types of a worker, with the maximum of attempts of each type.
-- Out:    the same, without what is paused. Null types mean all; if a type is paused, they become
--         the types that wait in the queues, without it.
-- Index:  pauses_pkey; jobs_claimable_by_type where the types are not said.
--
-- What is paused is left out of the question; it is no filter on rows. So a paused queue is not
-- looked at, however much waits in it. Jobs of a paused type are passed over like jobs that the
-- worker has no handler for: by ranges of the index.
--
-- As a rule nothing has ever been paused. Then the file of the table has no page, so the table has
-- no rows, and nothing is read.
--
-- A claim tries to take `pauses_lock` shared before it reads what is paused. The naive claim does
-- not. It may read that nothing is paused, and commit after a pause has committed. A session that
-- waits until nothing runs may look in between. await_claims takes the lock alone, for a moment.
-- Then all claims that began before have committed, and all that begin later see the pause.
--
-- A claim never waits for the lock. Any role that may connect can hold it, and would stop all work.
-- A claim that does not get the lock goes on without it. As a rule await_claims then has the lock,
-- or waits for it; so the pause is committed, and the claim sees it. One gap is left: if two
-- sessions wait for claims at the same moment, the first may keep a claim from the lock, and the
-- second does not wait for that claim.
--
-- The lock costs a claim of one job 3 % and more. So it is tried only where the table has a page:
-- where something was paused before. A claim that began before the first pause of all is not waited
-- for.
create or replace function {schema}.admit(inout queue_names text[], inout job_types text[], inout maxima integer[])
language plpgsql volatile
set jit = off
as $$
#variable_conflict use_variable
declare
    is_all boolean;
    paused_queues text[];
    paused_types text[];
begin
    if pg_relation_size('{schema}.pauses') = 0 then
        return;
    end if;
    select coalesce(bool_or(p.scope = 'everything'), false), array_agg(p.name) filter (where p.scope = 'queue'),
        array_agg(p.name) filter (where p.scope = 'job_type')
    into is_all, paused_queues, paused_types
    from {schema}.pauses as p;
    if is_all then
        queue_names := '{{}}';
        return;
    end if;
    if paused_queues is not null then
        queue_names := array(
            select q.name
            from unnest(queue_names) with ordinality as q(name, place)
            where not q.name = any (paused_queues)
            order by q.place);
    end if;
    if paused_types is null then
        return;
    end if;
    if job_types is null then
        job_types := array(
            select distinct t.name
            from unnest(queue_names) as q(name), unnest({schema}.types_of(q.name)) as t(name)
            where not t.name = any (paused_types));
        maxima := null;
    else
        select coalesce(array_agg(t.name order by t.place), '{{}}'), array_agg(t.maximum order by t.place)
        into job_types, maxima
        from unnest(job_types, maxima) with ordinality as t(name, maximum, place)
        where not t.name = any (paused_types);
    end if;
end
$$;

-- pauses_lock: the key of the lock that claims share, and that await_claims takes alone.
create or replace function {schema}.pauses_lock() returns bigint
language sql immutable parallel safe
as $$ select hashtextextended({schema_text} || ' pauses', 0) $$;

-- await_claims: wait until every claim that may not have seen the current pauses has committed.
--
-- Out:    true; false if another session has held the lock for 0.2 seconds. While this waits,
--         claims go on without the lock. So it gives up soon, and its caller asks again.
-- Locks:  pauses_lock, alone. It holds nothing else.
create or replace function {schema}.await_claims() returns boolean
language plpgsql volatile
set lock_timeout = '200ms'
as $$
begin
    perform pg_advisory_xact_lock({schema}.pauses_lock());
    return true;
exception
    when lock_not_available then
        return false;
end
$$;
