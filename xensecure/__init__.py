"""xensecure: the transport that takes ssh's place under Xen's ``xl migrate``."""

__version__ = "0.1.0"
