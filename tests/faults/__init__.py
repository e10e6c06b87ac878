"""Networks, disks and processes that fail as they are told, and the sweeps over them (docs/reliability.md)."""
