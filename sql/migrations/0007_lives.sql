-- Signs of life that only a worker's own role can give, and whether it was given up. The protocol is the essay at the head of
-- pgnotifyq/runtime/trust.py; its half in the database is functions/watch.sql, hold_session.sql and beat.sql.
alter table {schema}.worker_heartbeats
    -- How long after the last sign of life others may take the jobs, once its session is gone, in seconds. The worker's own, like its
    -- lease. null: a worker of an older release, for which whoever watches has a grace of its own.
    add column grace_seconds double precision,
    -- The session that speaks for it: process, start and role of the backend, and the advisory lock that it holds. null: none does, or
    -- it is of an older release, and holds the lock named after the worker.
    add column session_pid integer,
    add column session_started_at timestamptz,
    add column session_role oid,
    add column session_lock bigint,
    -- When others gave it up: from then on its jobs are taken. A beat does not undo that, for the worker has to be told.
    add column dead_since timestamptz;
