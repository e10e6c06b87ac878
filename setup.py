"""Builds xensecure and its C engine. Tools' settings stand in pyproject.toml; the version in xensecure/__init__.py."""

import re
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent
VERSION = re.search(r'^__version__ = "(.+)"$', (HERE / "xensecure/__init__.py").read_text(), re.MULTILINE)[1]

setup(
    name="xensecure",
    version=VERSION,
    description="The secure transport for Xen's xl migrate: TLS 1.3 with a link key mixed in, and a C engine for the stream",
    long_description=(HERE / "README.md").read_text(),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    classifiers=[
        "Environment :: Console",
        "Intended Audience :: System Administrators",
        "Operating System :: POSIX :: Linux",
        "Programming Language :: C",
        "Programming Language :: Python :: 3 :: Only",
        "Topic :: Security :: Cryptography",
        "Topic :: System :: Networking",
    ],
    packages=find_packages(include=["xensecure", "xensecure.*"]),
    package_data={"xensecure": ["py.typed"]},
    python_requires=">=3.11",
    # The floors are what Debian 12 ships.
    install_requires=["cryptography>=38", "pyOpenSSL>=23", "cffi>=1.15", "pyroute2>=0.7"],
    setup_requires=["cffi>=1.15"],
    cffi_modules=["csrc/build_engine.py:ffibuilder"],
    entry_points={
        "console_scripts": [
            "xensecure = xensecure.cli.xensecure:main",
            "xensecured = xensecure.cli.xensecured:main",
            "xensecure-launcher = xensecure.cli.launcher:main",
            "xensecurectl = xensecure.cli.ctl:main",
        ]
    },
    # One extension for every Python from 3.11 on.
    options={"bdist_wheel": {"py_limited_api": "cp311"}},
    zip_safe=False,
)
