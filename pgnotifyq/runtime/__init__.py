"""The tasks of a worker's nursery, async functions all: listener, claimer, slots, settler, heartbeat, reclaimer, pruner."""
