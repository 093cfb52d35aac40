-- purge_dead: delete one dead letter, or those that died longer ago than given, with their history.
-- $3: only this tenant's; null: any tenant's.
with gone as (
    delete from {schema}.dead_letter_jobs as d
    where (($1::uuid is not null and d.id = $1)
        or ($2::float8 is not null
            and d.died_at < {schema}.clock() - make_interval(secs => $2)))
      and ($3::uuid is null or d.org_id = $3)
    returning d.id, d.org_id
), history as (
    delete from {schema}.job_executions as e using gone where e.job_id = gone.id and e.org_id = gone.org_id
)
select count(*) from gone
