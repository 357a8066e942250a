"""Data sets: where they lie, how their golds are read, and whether every gold holds."""
