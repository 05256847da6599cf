"""The long-running side: ingest, sessions, recorder, status, dashboard, and the `mdd` command."""
