"""Text to token ids and back, gaps, and batches of texts with gaps."""
