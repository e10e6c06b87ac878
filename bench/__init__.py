"""Measurements beside ssh, TLS and plain TCP. ``make bench`` runs them, ``make bench-instructions`` counts the engine's instructions."""
