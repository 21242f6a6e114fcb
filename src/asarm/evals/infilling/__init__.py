"""What the evaluations on stories and code share: examples, infilling systems, gap lengths."""
