-- begin: the schema, and the table that notes what was applied, where they are not there yet.
-- Functions call each other and come in order of path.
set local check_function_bodies = off;
-- `create schema if not exists` asks for a right on the database even if the schema is there,
-- because a DBA has made it for us.
do $do$
begin
    if not exists (select from pg_namespace where nspname = {schema_text}) then
        if not has_database_privilege(current_database(), 'create') then
            raise insufficient_privilege using message = format(
                'role %s needs CREATE on the database %s to make the schema %s there',
                current_user, current_database(), {schema_text});
        end if;
        create schema {schema};
    elsif not has_schema_privilege({schema_text}, 'create') then
        raise insufficient_privilege using message = format('role %s needs CREATE on the schema %s', current_user, {schema_text});
    end if;
end
$do$;
create table if not exists {schema}.schema_migrations (
    version integer primary key,
    name text not null,
    digest text not null,
    applied_at timestamptz not null default clock_timestamp()
);
alter table {schema}.schema_migrations add column if not exists oldest_code integer;
