"""Programs that tests start as processes, to stop, continue and kill them."""
