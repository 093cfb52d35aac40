-- name_org: return the id of a tenant, and keep its name for people.
--
-- Out:    as org(). A uuid keeps no name.
-- Rights: select and insert on org_names.
create or replace function {schema}.name_org(name text) returns uuid
language plpgsql volatile
as $$
#variable_conflict use_column
declare
    id uuid := {schema}.org(name_org.name);
begin
    if id::text <> lower(name_org.name) and name_org.name !~ '^(urn:uuid:)?[-0-9a-fA-F{{}}]{{32,}}$' then
        insert into {schema}.org_names (org_id, name) values (id, name_org.name) on conflict do nothing;
    end if;
    return id;
end
$$;
