-- take_stage: one demo at a time in a database. Held until leave_stage, or until the session ends.
select pg_try_advisory_lock(hashtextextended({schema_text}, 0))
