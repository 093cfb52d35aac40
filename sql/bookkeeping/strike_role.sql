-- strike_role: drop the role of a schema's tenants. Refused where another database needs it.
drop role if exists {tenant_role}
