"""The four commands."""
