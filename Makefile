# The two commands of a newcomer are `make demo` and `make test`; both set up what is missing first.

PYTHON := .venv/bin/python
# A mount namespace of its own, where that is allowed: mounts that come and go elsewhere on the machine, and programs that
# copy the mounts they find (podman, unshare), then cannot keep those of the tests busy.
ISOLATED := $(shell [ "$$(id -u)" = 0 ] && echo unshare --mount --propagation private)
PYTEST := $(ISOLATED) $(PYTHON) -m pytest
# Side by side, where each worker can have a mount namespace for itself (tests/conftest.py).
# One more than there are cores: much of their time is waiting for daemons to end.
WORKERS := $(if $(ISOLATED),--numprocesses $(shell echo $$(( $$(nproc) < 4 ? $$(nproc) + 1 : 4 ))) --dist worksteal)

.PHONY: demo dist test test-dist test-rootfs stress conformance bench bench-waiting lint format manual pictures clean setup

setup:
	@scripts/setup

demo: setup
	@scripts/demo

# Once more without the extension module, as where there is no compiler: what a user sees of a mount, whoever he is.
test:
	@scripts/setup --tests
	FUSEUNION_WIRE=0 $(PYTEST) $(WORKERS) tests/integration --actor user $(ARGS)
	$(PYTEST) $(WORKERS) tests --ignore=tests/rootfs --ignore=tests/conformance --ignore=tests/bundle $(ARGS)

# A Debian root filesystem under apt-get, chroot and a compiler, compared with what the kernel's overlayfs gives.
test-rootfs:
	@scripts/setup --tests
	@scripts/setup-conformance
	$(PYTEST) tests/rootfs $(ARGS)

# podman, buildah and their like with fuseunion as the mount program; PostgreSQL, rpm and CPython's own tests on a mount.
conformance:
	@scripts/setup --tests
	@scripts/setup-conformance
	$(PYTEST) tests/conformance $(ARGS)

# What to give to others: source distribution, wheels, the self-contained directory (docs/install.md). Needs root.
dist:
	@packaging/dist

# Builds it, and tries it on a Debian 11 with nothing else.
test-dist: dist
	@scripts/setup --tests
	$(PYTEST) tests/bundle $(ARGS)

# Minutes of random operations, of creating and deleting, of many mounts, of races, of hostile layers, random errors and
# power cuts, of two users; every errno at every system call. Each prints its seed and counts (docs/guarantees.md).
# What is answered without Python is compared with what Python says, where no errors are made up.
# Load: 64 processes for FUSEUNION_STRESS_LOAD seconds (600), a million files, 200 mounts, 500 lowers.
stress:
	@scripts/setup --tests
	FUSEUNION_STRESS=1 FUSEUNION_WIRE=compare $(PYTEST) tests -m stress $(ARGS)
	FUSEUNION_STRESS=1 $(PYTEST) -rP tests/trust tests/model/test_faults.py tests/differential/test_two_users.py $(ARGS)

# Every row of the benchmark, small, on tmpfs (docs/performance.md); fails when fuseunion does, or finds something else
# than the others, when a mount takes 40 ms longer to answer than an empty filesystem, or a command in a union 250 ms longer to
# start than with unshare, fuse-overlayfs and chroot.
bench: setup
	$(PYTHON) -m bench --start-limit 40 --exec-limit 250 $(ARGS)

# How long others wait while a mount is busy: the table in docs/waiting.md. Needs root.
bench-waiting: setup
	$(PYTHON) bench/waiting.py $(ARGS)

lint:
	@scripts/setup --tests
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -m ruff check .
	$(PYTHON) -m mypy

format:
	$(PYTHON) -m ruff format .
	$(PYTHON) -m ruff check --fix .

# The pictures of docs/live.md and docs/layers.md, from what the commands print.
pictures:
	.venv/bin/python scripts/pictures

# The manual page is made of docs/options.md.
manual:
	scripts/manual >docs/man/.new && mv docs/man/.new docs/man/fuseunion.1

clean:
	rm -rf .venv .pytest_cache .mypy_cache .ruff_cache .hypothesis
