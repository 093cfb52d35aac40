-- begin_own_fence: do what begin_fence_of_tenant does, on a connection of the handler's own. The
-- connection's role may be another than the worker's: the tenants' role is taken on if it may be.
--
-- In:     as begin_fence; $3 the tenant.
-- Out:    as begin_fence; two columns that nobody reads; whether anything confines the transaction
--         now: a superuser is exempt from row security, and the setting alone does not bind it;
--         what a token has to say, as of begin_fence_of_login; whether only a token confines the
--         session.
--
-- All that depends on the role is read before the role changes: no table is read beside it.
select {schema}.fence($1::uuid, $2::uuid),
    set_config('pgnotifyq.org_id', $3::text, true),
    set_config('role', coalesce(me.tenant_role, current_setting('role')), true),
    me.tenant_role is not null or not me.is_exempt as is_confined,
    encode(int4send(pg_backend_pid()) || timestamptz_send(now()) || xid8send(pg_current_xact_id()), 'hex') as says,
    me.is_sealed
from (
    select {schema}.tenant_role_to_take_on() as tenant_role, {schema}.is_sealed(session_user) as is_sealed,
        (select r.rolsuper or r.rolbypassrls from pg_roles as r where r.rolname = current_user) as is_exempt
    offset 0
) as me
