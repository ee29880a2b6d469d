"""Exported networks: writing, checking and loading their folder."""
