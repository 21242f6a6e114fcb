"""Backbones with one contract, their key/value cache in rank order, and loading."""
