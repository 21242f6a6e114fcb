"""Utilities that know nothing of models: files, JSON lines, settings, errors, provenance."""
