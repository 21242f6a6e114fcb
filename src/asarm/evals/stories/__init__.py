"""Infilling of stories, scored by ROUGE."""
