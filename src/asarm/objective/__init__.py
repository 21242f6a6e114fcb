"""Training objective and exact log-densities."""
