"""Every setting: stages, methods, profiles, and the one thing in which an arm differs."""
