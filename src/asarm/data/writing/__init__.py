"""A language model's own writing as a corpus: what it is asked for, what of its answers is kept."""
