-- Signs of life that only a worker's own role can give, and whether the worker was given up. The
-- protocol is the essay at the head of pgnotifyq/runtime/trust.py. Its half in the database is in
-- functions/worker: watch.sql, hold_session.sql and beat.sql.
alter table {schema}.worker_heartbeats
    -- If the worker's session is gone, others may take its jobs this long after its last sign of
    -- life, in seconds. Each worker has its own, like its lease. Null: a worker of an older
    -- release; the watcher's own grace counts.
    add column grace_seconds double precision,
    -- The session that speaks for the worker: process, start and role of the backend, and the
    -- advisory lock that it holds. Null: none does, or the worker is of an older release, and its
    -- session holds the lock named after the worker.
    add column session_pid integer,
    add column session_started_at timestamptz,
    add column session_role oid,
    add column session_lock bigint,
    -- When others gave the worker up. From then on its jobs are taken. A beat does not undo that:
    -- the worker must be told.
    add column dead_since timestamptz;
