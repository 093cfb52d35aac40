-- leave_stage: let the next demo in.
select pg_advisory_unlock(hashtextextended({schema_text}, 0))
