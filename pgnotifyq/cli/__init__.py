"""The command line. Each group of commands has a file, with what they take, do and print.

| file | commands |
|---|---|
| `jobs.py` | `enqueue`, `jobs`, `show`, `cancel`; `enqueue -` is in `lines.py` |
| `explain.py` | `explain` |
| `dead.py` | `dead`, `requeue` |
| `workers.py` | `workers`, `stats` |
| `worker.py` | `worker`; its signals and its end are in `ending.py` |
| `schema.py` | `migrate` |
| `org.py` | `config` (get, set, unset, list), `audit`, `protect`, `unprotect` |
| `org_credentials.py` | `credentials` (set, delete, list, rotate, new-key) |
| `doctor.py` | `doctor` |
| `demo.py` | `demo`; the play is in `demo_play.py`, its handlers in `demo_handlers.py` |
| `db.py` | `db start`, `db stop`, `db url`, `db psql` |

`app.py` makes the application of these commands, and prints errors. The groups share
`parameters.py` (what several commands take), `act.py` (from an address to the ledger), `reach.py`
(whether the server still answers), `output.py` (JSON, tables, tabs) and `streams.py` (standard
output and error).

A new command is a function in its group's file, and a line in `app.py`. Every command, `--help`
too, imports the files of all groups. So such a file imports at its head only what the package
itself has loaded. The function that needs more imports it.
"""
