# One command for each thing a person does. Every one of them installs what it needs first (scripts/setup.sh).

PYTHON ?= python3
export PYTHON
# Tests of migrations mostly wait: four at a time, the files whole, for their hosts serve all tests of one.
PYTEST ?= -n 4 --dist loadfile
VENV := .venv/bin
ENGINE := xensecure/_engine.abi3.so
CHECKED := xensecure tests demo bench csrc setup.py packaging/ansible $(shell grep -l '^.!/usr/bin/python3' hooks/*)
# What gcc must be silent about; the engine's own flags stand in csrc/build_engine.py.
WARNINGS := -std=gnu11 -O2 -Wall -Wextra -Werror -Wshadow -Wconversion -fanalyzer
# libipsec-mb's backend and libzstd's compression too, where their headers are there.
WARNINGS += $(shell echo '\#include <intel-ipsec-mb.h>' | $(CC) -E - >/dev/null 2>&1 && echo -DXS_WITH_IPSEC_MB)
WARNINGS += $(shell echo '\#include <zstd.h>' | $(CC) -E - >/dev/null 2>&1 && echo -DXS_WITH_ZSTD)

.PHONY: help demo attack test test-python test-debian test-c fuzz faults load check model bench bench-instructions fleet dist deb deb-check fleet-check xen-demo xen-lab xen-shell xen-down xen-record test-xen clean setup-demo setup-test setup-attack setup-fuzz setup-bench setup-xen setup-model
.DEFAULT_GOAL := help

help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## /make \1\t/p' $(MAKEFILE_LIST) | expand -t 24

demo: setup-demo $(ENGINE) ## two hosts, the real xl, 1 GiB, and a man in the middle
	@$(VENV)/python -m demo

attack: setup-attack $(ENGINE) ## real attacks on xensecure, ssh, TLS and plain TCP, and their table (as root); ATTACK="--write-docs"
	@$(VENV)/python -m tests.attack $(ATTACK)

test: setup-test $(ENGINE) test-c test-debian test-python ## every test

test-python: setup-test $(ENGINE) ## the Python tests, with the newest libraries
	$(VENV)/python -m pytest $(PYTEST)

test-debian: setup-test ## the same tests with Debian's Python, cryptography, pyOpenSSL and cffi
	scripts/test-debian.sh $(PYTEST)

test-c: setup-test ## the engine's C tests and fuzz targets under ASan and UBSan, those with threads under TSan
	tests/c/run.sh
	tests/c/run.sh --tsan
	tests/fuzz/run.sh

fuzz: setup-fuzz $(ENGINE) ## every parser of a peer's bytes, for a minute each (docs/fuzzing.md); FUZZ="--seconds N"
	tests/fuzz/run.sh --fuzz $(FUZZ)
	$(VENV)/python -m tests.fuzz.messages $(FUZZ)

model: setup-model ## the session's lost links and final handshake, model-checked by spin; MODEL="W_OLD_LANES" for one
	@$(PYTHON) -m tests.model $(MODEL)

faults: setup-test $(ENGINE) ## a link cut at every byte of a migration's small phases and at random in its pages; FAULTS="--seed N --random 500"
	@$(VENV)/python -m tests.faults.sweep $(FAULTS)

load: setup-test $(ENGINE) ## 20 migrations at once for 10 minutes, every second one cut; LOAD="--quick"
	@$(VENV)/python -m tests.faults.load $(LOAD)

check: setup-test $(ENGINE) ## lint, types, and C warnings as errors
	$(VENV)/ruff check $(CHECKED)
	$(VENV)/mypy
	$(VENV)/mypy packaging/ansible/roles/xensecure/*/*.py
	for file in csrc/*.c bench/*.c; do $(CC) $(WARNINGS) -c $$file -o /dev/null || exit 1; done

bench: setup-bench $(ENGINE) ## speed, CPU, memory and start beside ssh, TLS and plain TCP, into build/bench.*; BENCH="--quick"
	@$(VENV)/python -m bench $(BENCH)

bench-instructions: setup-bench ## the engine's instructions under callgrind, beside the recorded ones; BENCH="--record"
	@$(VENV)/python -m bench.instructions $(BENCH)

fleet: setup-test $(ENGINE) ## what the Ansible role costs, on hosts made of namespaces (as root); FLEET="3 10 --host 1000"
	@$(VENV)/python -m tests.fleet.measure $(or $(FLEET),3 10)

dist: setup-test ## wheel and source archive, in dist/
	rm -rf dist/*.whl dist/*.tar.gz build/lib* build/bdist*
	$(VENV)/pip wheel -qq --no-deps --no-build-isolation --wheel-dir dist .
	$(VENV)/python setup.py -q sdist --dist-dir dist

deb: ## Debian packages, in dist/, built in a clean Debian 12 (as root)
	scripts/deb.sh

deb-check: ## lintian, two equal builds, install, upgrade, remove, purge, units
	scripts/deb-check.sh

fleet-check: setup-test deb dist ## the Ansible role with the package and with pip, on containers with systemd (as root)
	scripts/fleet-check.sh

xen-demo: setup-xen $(ENGINE) ## a live guest moves between two real Xen hosts in QEMU, and a man in the middle tries (as root)
	@$(VENV)/python -m tests.xen demo $(XEN)

xen-lab: setup-xen $(ENGINE) ## two real Xen hosts in QEMU (as root); XEN="--mode pvh"
	@$(VENV)/python -m tests.xen up $(XEN)

xen-shell: ## a shell in dom0: HOST=a or HOST=b
	@$(VENV)/python -m tests.xen shell $(HOST)

xen-down: ## end the two Xen hosts
	@$(VENV)/python -m tests.xen down

xen-record: setup-xen $(ENGINE) ## record what xl sends when guests move, into ~/.cache/xensecure/streams
	@$(VENV)/python -m tests.xen record $(XEN)

test-xen: setup-xen $(ENGINE) ## the tests with real Xen; XEN="moves cut"
	@$(VENV)/python -m tests.xen test $(XEN)

# The engine beside its Python files, and these compiled as an installed package's are.
$(ENGINE): $(wildcard csrc/*) setup.py | setup-demo
	$(VENV)/python setup.py -q build_ext --inplace
	@touch $@

setup-demo setup-test setup-attack setup-fuzz setup-bench setup-xen setup-model:
	@scripts/setup.sh $(@:setup-%=%)

clean: ## remove what was made, but not the virtual environments
	rm -rf build dist xensecure.egg-info $(ENGINE) .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find xensecure tests demo bench csrc -name __pycache__ -prune -exec rm -rf {} +
