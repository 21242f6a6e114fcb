"""The training objective, masking, and exact log-densities."""
