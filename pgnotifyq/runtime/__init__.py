"""The tasks of a worker's nursery, each given what it uses; docs/architecture.md lists them."""
