-- seal_tenant: say which tenant a transaction is of. In: $1 the token, $2 the tenant.
--
-- The token alone confines. The setting is for what looks at it: a user's trigger, say.
select pg_catalog.set_config('pgnotifyq.token', $1::text, true), pg_catalog.set_config('pgnotifyq.org_id', $2::text, true)
