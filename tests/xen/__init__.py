"""Two real Xen hosts in QEMU, and the tests that need them: ``python -m tests.xen``. docs/xen-lab.md says how to use them.

Plain ``pytest tests`` finds nothing here: these tests need root and many minutes, and have a runner of their own.
"""
