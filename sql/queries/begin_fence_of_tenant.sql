-- begin_fence_of_tenant: do what begin_fence does, and confine the transaction to a tenant.
--
-- In:     as begin_fence; $3 the tenant, $4 the tenants' role, or none.
-- Out:    as begin_fence; and two columns that nobody reads.
--
-- Tenant and role are set for the transaction, never for the session: a pooled connection would
-- carry one tenant into the work of another.
select {schema}.fence($1::uuid, $2::uuid),
    set_config('pgnotifyq.org_id', $3::text, true),
    set_config('role', $4::text, true)
