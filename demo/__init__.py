"""What xensecure does, shown on one machine: two hosts, the real xl, and a man in the middle. ``make demo`` runs it."""
