-- act_as: take a role on, for the session. In: $1 the role.
select set_config('role', $1::text, false)
