"""Peers: one small program each, that the runner drives through the commands of `protocol`. Nothing here is a dependency of the project."""
