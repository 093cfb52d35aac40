-- count_troubles: how many jobs were put aside, by what could not be done.
select t.verb, count(*) from {schema}.job_troubles as t group by t.verb order by t.verb
