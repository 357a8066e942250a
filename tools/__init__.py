"""What makes the repository's documents: generated blocks, licences, the API reference. Not in the wheel."""
