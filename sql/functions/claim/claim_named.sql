-- claim_named: take the one job that a wake-up named, if it is due and nobody has taken it. See
-- runtime/shortcuts.py.
--
-- In:     as for claim, and the job. A job that is in trouble, or of a type that is not for this
--         worker, is left.
-- Out:    the job as claim gives it, without what claim says in its last row. No row: the job is
--         pending and was not taken (it is another queue's, paused, or not due), so the worker
--         looks at its queues. A row whose `id` is null: the worker need not look, because the job
--         has been taken, has ended, or never was.
-- Errors: lock_not_available: another transaction has held the row for 20 ms. A claim holds it for
--         less.
-- Locks:  `pauses_lock`, shared (admit.sql). The job. It is not `skip locked`: if two sleepers are
--         told of one job, the second sleeper is to learn that the job was taken.
-- Index:  jobs_pkey. The statement says `status = 'pending'` and not `is_claimable`: that would
--         offer the planner jobs_claimable. After an analyze of an empty table that index seems
--         cheaper, and is a walk over the queue.
--
-- The earlier form is dropped. Otherwise a call without the last arguments would fit both.
drop function if exists {schema}.claim_named(uuid, text[], uuid, double precision);
create or replace function {schema}.claim_named(
    worker_id uuid, queue_names text[], job_id uuid, lease_seconds double precision, job_types text[] default null,
    maxima integer[] default null, payload_bytes_max bigint default null)
returns setof {schema}.claimed
language plpgsql volatile
set lock_timeout = '20ms'
set plan_cache_mode = force_generic_plan
set jit = off
set enable_seqscan = off
set enable_bitmapscan = off
as $$
#variable_conflict use_column
declare
    -- An assignment is evaluated as it stands; a `perform` would start an executor for it.
    commits text := set_config('synchronous_commit', 'off', true);
    time_now timestamptz := {schema}.clock();
    has_troubles boolean := false;
begin
    if pg_relation_size('{schema}.pauses') > 0 then
        perform pg_try_advisory_xact_lock_shared({schema}.pauses_lock());
        select a.queue_names, a.job_types, a.maxima into queue_names, job_types, maxima
        from {schema}.admit(queue_names, job_types, maxima) as a;
    end if;
    if pg_relation_size('{schema}.job_troubles') > 0 then
        has_troubles := exists (select from {schema}.job_troubles);
    end if;
    return query
    update {schema}.jobs as j
    set status = 'running',
        attempts = j.attempts + 1,
        max_attempts = coalesce(j.max_attempts, greatest(
            coalesce(maxima[array_position(job_types, j.job_type::text)], 15), j.attempts + 1)),
        locked_by = claim_named.worker_id,
        current_execution_id = {schema}.new_id(),
        started_at = t.taken_at,
        lease_expires_at = t.taken_at + make_interval(secs => lease_seconds),
        progress = null,
        progress_message = null
    from (select {schema}.clock() as taken_at offset 0) as t
    where j.id = claim_named.job_id and j.status = 'pending' and j.queue_name = any (queue_names)
      and {schema}.may_start(j, job_types, has_troubles, time_now)
    returning j.id, j.current_execution_id, j.org_id, j.queue_name::text, j.job_type::text,
        case when payload_bytes_max is null
            or (payload_bytes_max >= 0 and {schema}.payload_weight(j.payload) <= payload_bytes_max)
            or {schema}.fits(j.payload, payload_bytes_max) then j.payload::text end,
        j.priority, j.scheduled_at, j.attempts, j.max_attempts, j.unique_key, j.created_at, j.started_at, j.lease_expires_at,
        j.saved::text, j.headers::text;
    if not found then
        if not exists (select from {schema}.jobs as j where j.id = claim_named.job_id and j.status = 'pending') then
            return next null::{schema}.claimed;
        end if;
    elsif pg_relation_size('{schema}.followers') > 0 then
        perform {schema}.tell_followers('started', array[j.id], array[j.attempts::text])
        from {schema}.jobs as j
        where j.id = claim_named.job_id;
    end if;
end
$$;
