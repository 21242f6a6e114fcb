"""LAMBADA, HellaSwag, and an adapter for lm-evaluation-harness."""
