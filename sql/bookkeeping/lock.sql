-- lock: one migration of a schema at a time. Held until the transaction ends.
select pg_advisory_xact_lock(hashtextextended('pgnotifyq migrate ' || {schema_text}, 0));
