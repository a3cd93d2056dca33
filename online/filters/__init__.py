"""Filters: a small language that says which items a list may hold (docs/filters.md)."""
