-- set_credential: keep a sealed credential, in the place of one of the same tenant and name. In:
-- tenant, name, key, what is sealed.
insert into {schema}.org_credentials as c (org_id, name, key_id, sealed) values ($1, $2, $3, $4)
on conflict (org_id, name) do update
set key_id = excluded.key_id, sealed = excluded.sealed, changed_at = {schema}.clock(), changed_by = session_user
