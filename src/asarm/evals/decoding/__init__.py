"""Sequential against speculative decoding of real text."""
