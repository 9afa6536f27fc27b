"""The database room: where the server is, how to reach it, and what its tables are."""
