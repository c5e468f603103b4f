"""From prompts to streams of text, on one thread that owns the model."""
