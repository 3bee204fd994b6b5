# make demo    sets up everything, runs the main job on real parts, ends with a table and a report   (KEEP=1 leaves it running)
# make test    sets up everything, runs the tests   (FULL=1 also those of the whole system that take one more delivery each)
# make check   linters, types, import rules
# make up      starts the local stack for your own models;   make down stops it;   make status shows it
# make bench   measures the figures of docs/benchmarks.json   (FULL=1 for the long ones)
# make chaos   kills and freezes every part at every stage of deliveries under traffic, and prints what came of it (most of an hour)
# make extras  installs what exports heavy flavours: XGBoost and LightGBM, PyTorch, TensorFlow (or one: EXTRAS=export_torch)
# make test-extras   runs their tests
# make images  builds all container images (docker/*/Dockerfile);   make standins  those in the place of public ones
# make docker-up   the whole system in containers (docker compose up -d --wait);   make docker-down ends it with all that deliveries started
# make backup FOLDER=<new folder>   databases, artifacts, images, secrets of the system in containers;   make restore FOLDER=<folder>
# make test-containers   builds the images and runs the tests that need a container engine   (FULL=1 likewise)
# make lock    resolves docker/*/requirements.in again
# make clean   stops the stack and deletes its state folder: environments, data, logs, secrets
#
# Needs Linux on x86_64 with glibc 2.35, make, and a Python from 3.11 to 3.13 (another than `python3`: PENSTOCK_PYTHON=<path>).
# Everything is installed below the state folder (.penstock, or PENSTOCK_STATE); nothing goes into your own Python.

SHELL := /bin/sh
PYTHON ?= python3
STATE := $(or $(PENSTOCK_STATE),.penstock)
ENVS := $(STATE)/envs
STACK := $(ENVS)/stack/bin/python
TESTS := $(ENVS)/tests/bin
ENVIRONMENTS := "$(PYTHON)" stack/bootstrap.py
CODE := validation delivery operators stack demo bench

EXTRAS ?= extras
RUNTIME ?= process
HOST := "$(PYTHON)" -m stack.docker_host

.PHONY: demo test check up down status bench chaos extras test-extras lock clean
.PHONY: images standins docker-up docker-down docker-clean backup restore test-containers
.NOTPARALLEL:

demo:
	@$(ENVIRONMENTS) running
	@PENSTOCK_RUNTIME=$(RUNTIME) "$(STACK)" -m demo

test:
	@$(ENVIRONMENTS) all
	"$(TESTS)/pytest" -m "not e2e and not containers and not engine" -n 2 --dist loadfile
	"$(TESTS)/pytest" -m e2e

check:
	@$(ENVIRONMENTS) tests
	"$(TESTS)/ruff" check .
	"$(TESTS)/ruff" format --check .
	"$(TESTS)/mypy" $(CODE)
	"$(TESTS)/lint-imports"

up:
	@$(ENVIRONMENTS) running
	@"$(STACK)" -m stack up

down status:
	@if [ -x "$(STACK)" ]; then "$(STACK)" -m stack $@; else echo "the stack is down: it was never set up"; fi

bench:
	@$(ENVIRONMENTS) running
	@"$(STACK)" -m bench

chaos:
	@$(ENVIRONMENTS) running
	@"$(STACK)" -m bench chaos

extras:
	@$(ENVIRONMENTS) $(EXTRAS)

test-extras:
	@$(ENVIRONMENTS) tests $(EXTRAS)
	"$(TESTS)/pytest" tests/test_export_extras.py

images standins:
	@$(HOST) $@

docker-up docker-down docker-clean:
	@$(HOST) $(@:docker-%=%)

backup restore:
	@$(HOST) $@ "$(FOLDER)"

test-containers: images
	@$(ENVIRONMENTS) running tests
	"$(TESTS)/pytest" -m "engine or containers"

lock:
	@$(ENVIRONMENTS) --lock

clean: down
	rm -rf "$(STATE)"
