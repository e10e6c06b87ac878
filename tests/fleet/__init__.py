"""Machines for the Ansible role: as many as are wanted, on one."""
