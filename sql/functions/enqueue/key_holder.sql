-- holds_key: whether a job holds its unique key: the condition of the index jobs_unique_key.
--
-- The function is SQL of one expression. So the planner puts the expression in its place, and finds
-- that the index is of these jobs.
create or replace function {schema}.holds_key(job {schema}.jobs) returns boolean
language sql immutable
as $$
    select (job).unique_key is not null and (job).key_passed_on is null
        and ((job).unique_until is not null or (job).waits_for is not null
             or ((job).is_claimable and ((job).started_at is null or (job).unique_while is null))
             or ((job).is_held and (job).unique_while is null))
$$;

-- key_scope: what a job's key is unique among, within its tenant: a job type, or '*', all of them.
-- It is the index's second column.
create or replace function {schema}.key_scope(job {schema}.jobs) returns text
language sql immutable
as $$ select coalesce((job).unique_scope::text, (job).job_type::text) $$;

-- gives_up_key: whether a job that holds its key would give it up to another, whatever the other
-- says: the period of the job is over; or the job was cancelled, and holds the key only until its
-- handler has ended.
create or replace function {schema}.gives_up_key(job {schema}.jobs, time_now timestamptz) returns boolean
language sql immutable
as $$ select (job).status = 'cancelled' or coalesce((job).unique_until <= time_now, false) $$;

-- key_holder: the job that holds a unique key and does not give it up. A producer does not see
-- other roles' jobs. It is told here which of them has its key, as enqueue promises.
--
-- Index:  jobs_unique_key.
-- Rights: the owner's. Only producers may ask.
create or replace function {schema}.key_holder(org_id uuid, scope text, unique_key text) returns uuid
language sql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
    select j.id
    from {schema}.jobs as j
    where j.org_id = key_holder.org_id and {schema}.key_scope(j) = key_holder.scope and j.unique_key = key_holder.unique_key
      and {schema}.holds_key(j) and not {schema}.gives_up_key(j, {schema}.clock())
$$;
revoke all on function {schema}.key_holder(uuid, text, text) from public;
