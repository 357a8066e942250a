"""Data sets: where they are, how their golds are read, and whether every gold holds."""
