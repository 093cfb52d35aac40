-- address: which backend answers, and where its server listens for this session: null, null for a
-- Unix socket.
select pg_backend_pid(), host(inet_server_addr()), inet_server_port()
