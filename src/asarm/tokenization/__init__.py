"""Text to token ids and back, the `___` notation for gaps, and batches of sequences to be infilled."""
