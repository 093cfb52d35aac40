"""The tests, by floor: model, wire, ledger, runtime, cli; chaos has a runner of its own."""
