"""Infilling of code, scored by running its tests."""
