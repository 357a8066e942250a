"""Prompts to answers: by Transformers, with shared prompts, or by vLLM."""
