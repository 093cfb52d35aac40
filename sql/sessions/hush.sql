-- hush: keep notices from people who did not ask: a migration says what it skips.
set client_min_messages = warning
