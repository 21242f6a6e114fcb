"""Evaluation of sequential and speculative decoding of real text."""
