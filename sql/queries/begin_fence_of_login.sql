-- begin_fence_of_login: do what begin_fence does, in a session of a tenant's login.
--
-- In:     as begin_fence.
-- Out:    as begin_fence; what a token for this transaction has to say besides the tenant, in
--         hexadecimal; whether the session is one that only a token confines; its role.
select {schema}.fence($1::uuid, $2::uuid),
    pg_catalog.encode(pg_catalog.byteacat(pg_catalog.int4send(pg_catalog.pg_backend_pid()), pg_catalog.byteacat(
        pg_catalog.timestamptz_send(pg_catalog.now()), pg_catalog.xid8send(pg_catalog.pg_current_xact_id()))), 'hex'),
    {schema}.is_sealed(session_user), session_user
