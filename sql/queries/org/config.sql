-- config: the settings of a tenant, as one object.
select coalesce(jsonb_object_agg(c.name, c.value), '{{}}') from {schema}.org_config as c where c.org_id = $1
