"""Training: rows with advantages, log-probabilities, one optimizer step, the loop, its log and checkpoints."""
