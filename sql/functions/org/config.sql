-- set_org_config: set one setting of a tenant. Workers hear of it (migration 0014).
--
-- Rights: select, insert and update on org_config.
create or replace function {schema}.set_org_config(org_id uuid, name text, value jsonb) returns void
language plpgsql volatile
as $$
#variable_conflict use_column
begin
    perform {schema}.check_setting_name(set_org_config.name);
    if set_org_config.org_id is null or set_org_config.value is null then
        raise exception 'a setting needs a tenant and a value'
            using errcode = 'PNQ02', hint = 'JSON has a null of its own: ''null''. unset_org_config takes a setting away.';
    end if;
    if pg_column_size(set_org_config.value) > 65536 then
        raise exception 'the value of setting % is too large', set_org_config.name
            using errcode = 'PNQ02', hint = 'At most 65536 bytes; keep larger ones in a table of yours.';
    end if;
    insert into {schema}.org_config as c (org_id, name, value)
    values (set_org_config.org_id, set_org_config.name, set_org_config.value)
    on conflict (org_id, name) do update
    set value = excluded.value, changed_at = {schema}.clock(), changed_by = session_user;
end
$$;

-- unset_org_config: take a setting away. The program's default holds again.
--
-- Out:    whether there was one.
-- Rights: select and delete on org_config.
create or replace function {schema}.unset_org_config(org_id uuid, name text) returns boolean
language plpgsql volatile
as $$
#variable_conflict use_column
begin
    delete from {schema}.org_config as c where c.org_id = unset_org_config.org_id and c.name = unset_org_config.name;
    return found;
end
$$;

-- check_setting_name: refuse what the domain refuses, and say what fits.
create or replace function {schema}.check_setting_name(name text) returns void
language plpgsql immutable
as $$
begin
    if name is null or name !~ '^[A-Za-z_][A-Za-z0-9_.-]{{0,99}}$' then
        raise exception 'name % is not valid', coalesce(quote_literal(left(name, 80)), 'null')
            using errcode = 'PNQ02', hint = 'Use 1 to 100 letters, digits and _ . - (first: a letter or _).';
    end if;
end
$$;
