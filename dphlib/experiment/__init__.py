"""Stages of a run, kept by content: from world to results."""
