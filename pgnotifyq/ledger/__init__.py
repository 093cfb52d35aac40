"""SQL as functions: one async function a verb, rows to model, SQLSTATE to errors. The SQL itself lives in `sql/`."""
