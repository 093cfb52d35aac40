-- explain: why a job of a tenant is where it is, as `explain` (sql/functions/look/explain.sql) says
-- it, and how many due jobs of the tenant itself come before it in its queue. If the job is not the
-- tenant's there is no row, as if it never was. In: tenant, job.
--
-- What `explain` says tells of other tenants, too: who comes first, which slots are free. That is
-- left out where the answer is read (`explaining.of_tenant`), so this is no statement for a tenant.
--
-- The tenant's own jobs are counted up to 1,000. Others' jobs are passed over, however many they
-- are: a bound on them would show in the count. So all that waits in the queue may be read, as by
-- count_jobs: 60 ms of 200,000 jobs.
--
-- Index:  jobs_pkey, and those of `explain`.
-- Rights: those of `explain`, and none for a job that is not the tenant's.
select e.label, e.answers, e.facts, case when e.facts->>'jobs_before' is not null then (
    select count(*)
    from (
        select from {schema}.jobs as f
        join {schema}.jobs as j on j.queue_name = f.queue_name
        cross join (select {schema}.clock() as now offset 0) as c
        where f.id = own.id
          and j.is_claimable and j.org_id = $1::uuid and j.scheduled_at <= c.now
          and (j.priority > f.priority
               or (j.priority = f.priority and (j.scheduled_at, j.id) < (f.scheduled_at, f.id)))
        limit 1000
    ) as o) end as own_before
from (select {schema}.of_org($1::uuid, $2::uuid) as id offset 0) as own
cross join lateral {schema}.explain(own.id) as e
where own.id is not null
