-- unread_bytes: how many bytes a document has that is too large to be shown beside others, 16 MiB; null of all others, which is all that came
-- through the doors. What is stored in less than 64 KiB has less than that, however well it was compressed, and is not looked into.
create or replace function {schema}.unread_bytes(document jsonb) returns integer
language sql immutable
as $$
    select case when pg_column_size(document) > 65536 then (
        select nullif(greatest(s.bytes, 16777216), 16777216) from (select octet_length(document::text) as bytes offset 0) as s) end
$$;
