"""Training data: local files, streamed datasets, packing."""
