-- Suspects: jobs that were running each time their worker died, and are tried apart from each other. The rules are at the head of
-- functions/reclaim.sql.

create domain {schema}.suspicion as text constraint suspicion_is_known check (value in ('parked', 'on_trial', 'guilty'));

alter table {schema}.jobs
    -- null, as nearly always: none. parked: waits for the others of its worker. on_trial: has its turn, and an attempt was given back
    -- that is charged after all when it is lost again. guilty: was lost again.
    add column suspicion {schema}.suspicion,
    -- The worker whose death made it a suspect; those who share one take turns.
    add column suspected_with uuid,
    add constraint suspect_has_company check ((suspicion is null) = (suspected_with is null));

-- Empty as a rule: rows that become suspects are few, and a completion changes neither column.
create index jobs_suspects on {schema}.jobs (suspected_with) where suspected_with is not null;
