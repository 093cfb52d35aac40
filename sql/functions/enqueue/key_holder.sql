-- key_holder: the unfinished job that holds a unique key. A producer does not see the jobs of
-- others, and is told which of them has its key, as enqueue promises.
-- Rights: the owner's. Only producers may ask.
create or replace function {schema}.key_holder(org_id uuid, job_type text, unique_key text) returns uuid
language sql stable security definer
set search_path = pg_catalog, pg_temp
as $$
    select j.id
    from {schema}.jobs as j
    where j.org_id = key_holder.org_id and j.job_type = key_holder.job_type and j.unique_key = key_holder.unique_key
      and j.holds_unique_key
$$;
revoke all on function {schema}.key_holder(uuid, text, text) from public;
