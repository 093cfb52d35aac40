-- make_role: the role of tenants, before the migration that looks whether it is there (0003).
-- Roles belong to the server, and the lock of `migrate` to a database. So the `migrate` of another
-- database may make the same role at this moment. This waits for that, and takes its role.
-- If the right to make roles is missing, the migration says so.
do $do$
begin
    if not exists (select from pg_roles where rolname = {tenant_role_text}) then
        create role {tenant_role} nologin;
    end if;
exception
    when duplicate_object or unique_violation or insufficient_privilege then
        null;
end
$do$;
do $do$
begin
    if exists (select from pg_roles where rolname = {tenant_role_text})
        and not pg_has_role(current_user, {tenant_role_text}, 'member')
    then
        grant {tenant_role} to current_user;
    end if;
exception
    when unique_violation or insufficient_privilege then
        null;
end
$do$;

