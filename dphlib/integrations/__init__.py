"""The method in other people's trainers: TRL and verl."""
