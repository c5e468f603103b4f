"""Models that transformers runs."""
