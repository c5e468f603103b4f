"""What transformers runs."""
