"""Evaluations: resumable runs, statistics, tables and plots."""
