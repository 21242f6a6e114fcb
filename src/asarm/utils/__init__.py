"""Files, JSON lines, errors, provenance and other small things that know nothing of models."""
