"""The CPU world: questions over real SQLite databases, sums, and the templates of prompts and answers."""
