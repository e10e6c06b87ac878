"""What runs on the host that receives a domain: the unprivileged receiver and the privileged launcher."""
