"""What runs on the host that sends a domain, or that joins another."""
