"""Runs on clusters: which process of a run this is, and the signals that end a job."""
