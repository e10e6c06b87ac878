"""The attack lab: real tools against xensecure and against what it replaces, on a segment of the lab's own. ``make attack`` runs it."""
