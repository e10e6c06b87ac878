"""A model of the session for spin."""
