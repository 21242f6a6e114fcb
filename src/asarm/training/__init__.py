"""Training: settings, the loop, validation, checkpoints and reports."""
