-- The trigger of a cancel does with less what it did. Nothing here rewrites or reads a table.
-- What the release before says and asks goes on.
--
-- Whether anybody follows is asked of the size of the table, here and in the trigger of an insert
-- (0018). To look into the table would be wrong. If the functions' owner is no superuser, row
-- security binds the owner: a session that is confined to a tenant sees followers of that tenant
-- only. tell_followers lifts that for itself.

-- An assignment is evaluated as it stands; a `perform` would start an executor for it. Otherwise as
-- before (0018).
create or replace function {schema}.note_cancel() returns trigger
language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $$
declare
    told text;
begin
    new.completed_at := coalesce(new.completed_at, {schema}.clock());
    new.unique_until := null;
    if new.current_execution_id is not null then
        told := {schema}.notify(
            {schema}.worker_channel(new.locked_by), 'cancel ' || new.id || ' ' || new.current_execution_id);
    elsif new.awaited then
        perform {schema}.announce_end(new.id);
    end if;
    if pg_relation_size('{schema}.followers') > 0 then
        if new.current_execution_id is not null then
            perform {schema}.tell_followers('stopping', array[new.id], array[new.attempts::text]);
        elsif old.current_execution_id is null then  -- else an attempt ends: note_attempts tells
            perform {schema}.tell_followers('ended', array[new.id], array[new.attempts || ' cancelled']);
        end if;
    end if;
    if old.status = 'pending' and pg_relation_size('{schema}.hooks') > 0 then
        perform {schema}.fire_hook(new);
    end if;
    return new;
end
$$;
revoke all on function {schema}.note_cancel() from public;
