-- settle_apart: settle one execution after the other, so that one that cannot be written is in the
-- way of no other. It is called when a batch has failed.
--
-- In:     as for settle. `lock_seconds`: how long each may wait for a lock. `is_last`: what is
--         still busy is put aside.
-- Out:    surprises, as of settle, and three more. `bare`: the execution ended as asked, but
--         without its message and result; `why` says the reason. `busy`: another transaction holds
--         the row, or a lock that a trigger of the user's wants; ask again. `refused`: the
--         execution cannot be written, and was put aside (job_troubles) with its wish; `is_news`:
--         for the first time.
-- Errors: the server's and the session's only (is_rows_own), and ours: what is wrong with this
--         function.
-- Locks:  the jobs, in the order given.
--
-- A trigger of the user's may stand still as well as raise. So if a single execution is asked for,
-- and its deadline cancels the statement, that is the row's own error. What was put aside for that
-- is not tried again before its time: the worker that was late because of it asks for the whole
-- batch again.
--
-- Each execution has a subtransaction. A constraint that the user has deferred would fail at the
-- commit, for all of them; so it is checked in the subtransaction.
create or replace function {schema}.settle_apart(
    worker_id uuid, job_ids uuid[], execution_ids uuid[], kinds text[], outcomes text[], delays double precision[],
    error_messages text[], results text[], reasons text[], lock_seconds double precision default 0.02, is_last boolean default true)
returns table (job_id uuid, became text, state text, why text, is_news boolean)
language plpgsql volatile
set jit = off
set enable_seqscan = off
set enable_bitmapscan = off
as $$
#variable_conflict use_column
declare
    org uuid;
    said text;
    is_settled boolean;
    is_alone constant boolean := cardinality(job_ids) = 1;
    time_now constant timestamptz := {schema}.clock();
begin
    perform set_config('lock_timeout', greatest(lock_seconds * 1000, 1)::integer::text, true);
    for place in 1 .. coalesce(cardinality(job_ids), 0) loop
        job_id := job_ids[place];
        is_settled := false;
        is_news := null;
        state := null;
        said := null;
        if exists (
            select from {schema}.job_troubles as t
            where t.job_id = job_ids[place] and t.execution_id = execution_ids[place] and t.look_at > time_now
              and t.sqlstate = '57014')
        then
            became := 'refused';
            why := null;
            is_news := false;
            return next;
            continue;
        end if;
        <<tries>>
        for turn in 1 .. case when error_messages[place] is null and results[place] is null then 1 else 2 end loop
            became := null;
            begin
                set constraints all deferred;
                became := {schema}.settle_one(
                    settle_apart.worker_id, job_ids[place], execution_ids[place], kinds[place], outcomes[place], delays[place],
                    case when turn = 1 then error_messages[place] else 'the outcome could not be stored: ' || said end,
                    case when turn = 1 then results[place] end, reasons[place]);
                if became = 'lost' and exists (
                    select from {schema}.jobs as j where j.id = job_ids[place] and j.current_execution_id = execution_ids[place])
                then
                    perform {schema}.refuse_unwritten();
                end if;
                set constraints all immediate;
                is_settled := true;
                if turn = 2 and became is null then
                    became := 'bare';
                end if;
            exception
                when others or assert_failure or query_canceled then
                    get stacked diagnostics state = returned_sqlstate, said = message_text;
                    said := left(said, 500);
                    if not ({schema}.is_rows_own(state) or (state = '57014' and is_alone)) then
                        raise;
                    end if;
                    exit tries when state = '57014';
                    if not is_last and left(state, 2) in ('40', '55') then
                        became := 'busy';
                        is_settled := true;
                    end if;
            end;
            exit tries when is_settled;
        end loop;
        why := said;
        if not is_settled then
            select j.org_id into org
            from {schema}.jobs as j
            where j.id = job_ids[place] and j.current_execution_id = execution_ids[place];
            became := case when found then 'refused' else 'lost' end;
            if found then
                is_news := {schema}.note_trouble(org, job_ids[place], kinds[place], state, said);
                update {schema}.job_troubles as t
                set execution_id = execution_ids[place], worker_id = settle_apart.worker_id, outcome = outcomes[place],
                    delay_seconds = delays[place], wished_error = error_messages[place], wished_result = results[place],
                    reason = reasons[place]
                where t.org_id = org and t.job_id = job_ids[place];
            end if;
        elsif became is distinct from 'busy' and exists (select from {schema}.job_troubles) then
            delete from {schema}.job_troubles as t where t.job_id = job_ids[place] and t.execution_id = execution_ids[place];
        end if;
        if became is not null then
            return next;
        end if;
    end loop;
end
$$;
