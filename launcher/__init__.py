"""How a job starts: entry points for `accelerate launch` and their launcher configurations."""
