"""Measurements beside ssh, on loopback: throughput, time to xl's banner, memory. ``make bench`` runs them."""
