"""From prompts to streams of text: one thread that owns the model."""
