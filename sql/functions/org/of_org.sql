-- of_org: the id of a job or of a dead letter, if it is this tenant's; else null, which is the id
-- of no job. So `cancel(of_org(...))` knows no job of another tenant.
--
-- A role that may not look at dead letters knows of none. If it got an error here, the error would
-- tell a job of another tenant from one that never was.
--
-- Index:  jobs_pkey, dead_letter_jobs_pkey.
create or replace function {schema}.of_org(org_id uuid, job_id uuid) returns uuid
language plpgsql stable
set jit = off
set enable_seqscan = off
set enable_bitmapscan = off
as $$
#variable_conflict use_column
declare
    tenant uuid;
begin
    select j.org_id into tenant from {schema}.jobs as j where j.id = of_org.job_id;
    if not found and has_table_privilege('{schema}.dead_letter_jobs', 'select') then
        select d.org_id into tenant from {schema}.dead_letter_jobs as d where d.id = of_org.job_id;
    end if;
    return case when tenant = of_org.org_id then of_org.job_id end;
end
$$;
