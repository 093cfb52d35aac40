-- server: which server this is: its data folder, and when it began, in seconds since 1970.
select current_setting('data_directory'), extract(epoch from pg_postmaster_start_time())::float8
