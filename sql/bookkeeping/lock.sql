-- lock: one migration of a schema at a time. Held until the transaction ends.
--
-- If the schema is there, the lock is one of its own table, which nobody else can take. The first
-- migration has only an advisory lock, which any role that may connect can hold. So the migration
-- waits ten seconds for that lock, and goes on without it. If another migration is under way, one
-- of the two then fails.
do $do$
declare
    former constant text := current_setting('lock_timeout');
begin
    if to_regclass('{schema}.schema_migrations') is null then
        perform set_config('lock_timeout', '10s', true);
        begin
            perform pg_advisory_xact_lock(hashtextextended('pgnotifyq migrate ' || {schema_text}, 0));
        exception when lock_not_available then
            raise notice 'somebody else holds the lock of migrations: going on without';
        end;
        perform set_config('lock_timeout', former, true);
    end if;
    if has_table_privilege(to_regclass('{schema}.schema_migrations'), 'update') then
        lock table {schema}.schema_migrations in share row exclusive mode;
    end if;
end
$do$;
