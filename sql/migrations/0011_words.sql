-- One word for one parameter, and one type for a claimed job. See sql/README.md, Words.
--
-- PostgreSQL replaces no function by one whose parameters have other names, or that returns another
-- type. Such functions are dropped here, and functions/ makes them again in the same transaction.
-- The types and the order of parameters and results stay. So workers of the release before go on:
-- they call by position.

-- A job as a claim brings it. Workers read its columns in this order: new columns go to the end.
create type {schema}.claimed_job as (
    id uuid,
    current_execution_id uuid,
    org_id uuid,
    queue_name text,
    job_type text,
    -- JSON as text. Null: larger than the worker takes.
    payload text,
    priority smallint,
    scheduled_at timestamptz,
    attempts integer,
    max_attempts integer,
    unique_key text,
    created_at timestamptz,
    started_at timestamptz,
    lease_expires_at timestamptz
);

do $do$
declare
    old text;
begin
    foreach old in array array[
        'beat(uuid)',
        'claim(uuid, text[], integer, double precision, boolean, text, integer, timestamptz, uuid, text[], integer[], '
            || 'bigint, bigint)',
        'claim_apart(uuid, text[], integer, double precision, text[], integer[], bigint)',
        'claim_by_type(uuid, text, integer, integer, double precision, text[], integer[], bigint, bigint, boolean, '
            || 'timestamptz, bytea, integer)',
        'claim_named(uuid, text[], uuid, double precision, text[], integer[], bigint)',
        'complete(uuid, uuid[], uuid[])',
        'due_type(text, text[])',
        'enqueue_claimed(uuid, uuid, uuid, double precision, uuid, text, text, text, smallint, integer)',
        'enqueue_many(uuid[], uuid[], text[], text[], text[], smallint[], timestamptz[], double precision[], '
            || 'integer[], text[])',
        'fall_asleep(uuid, text[], text[])',
        'fence(uuid, uuid)',
        'has_died(uuid)',
        'has_due(text)',
        'heartbeat(uuid, uuid[], uuid[], double precision)',
        'heartbeat_apart(uuid, uuid[], uuid[], double precision)',
        'history(uuid)',
        'hold_session(uuid)',
        'is_alive(uuid)',
        'is_in_trouble(uuid, uuid, timestamptz)',
        'letter_error(uuid, uuid, text)',
        'letter_id(uuid, integer)',
        'meet_fence(uuid, uuid, text)',
        'next_by_type(text, integer, text[], boolean, timestamptz)',
        'note_afterthought(uuid, uuid, text)',
        'note_trouble(uuid, uuid, text, text, text)',
        'prune(double precision, uuid, integer, text[])',
        'publish_handlers(uuid, text[], text[], integer[])',
        'queue_of(text)',
        'register_worker(uuid, text, integer, text[], integer, text, boolean, double precision, double precision)',
        'release_all(uuid)',
        'requeue_all(text, text, integer)',
        'session_lives(uuid)',
        'settle(uuid, uuid[], uuid[], text[], text[], double precision[], text[], text[], text[])',
        'settle_apart(uuid, uuid[], uuid[], text[], text[], double precision[], text[], text[], text[], '
            || 'double precision, boolean)',
        'types_of(text)',
        'unregister_worker(uuid)',
        'wake(text, timestamptz, bigint, text, text)',
        'wake_able(text, uuid)',
        'wake_up(uuid, text[])',
        'watch(uuid, double precision, double precision)']
    loop
        if to_regprocedure('{schema}.' || old) is not null then
            execute 'drop function {schema}.' || old;
        end if;
    end loop;
end
$do$;
