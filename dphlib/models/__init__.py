"""Models: loaded and placed, what of them is trained, adapters on disk."""
