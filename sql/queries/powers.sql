-- powers: what the connected role may do by nature. Out: superuser, exempt from row security, its
-- name.
select rolsuper, rolbypassrls, rolname::text
from pg_roles
where rolname = current_user
