-- unread_bytes: how many bytes a document has, if that is more than 16 MiB; else null. Such a
-- document is too large to be shown beside others. None comes through the doors.
--
-- A document that is stored in at most 64 KiB has less than 16 MiB, however well it was compressed.
-- So it is not looked into.
create or replace function {schema}.unread_bytes(document jsonb) returns integer
language sql immutable
as $$
    select case when pg_column_size(document) > 65536 then (
        select nullif(greatest(s.bytes, 16777216), 16777216) from (select octet_length(document::text) as bytes offset 0) as s) end
$$;
