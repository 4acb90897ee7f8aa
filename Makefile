# Two commands do everything on a fresh machine: `make demo` and `make test`.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
PYTEST = OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n logical  # a process for every core, a thread for every process
GOLDEN = tests/parity/golden_seed7.npz
TOOLS = $(VENV)/tools/bin
LOCK = $(TOOLS)/uv pip compile --universal --upgrade --generate-hashes --no-annotate --no-emit-index-url --quiet \
  --custom-compile-command "make lock"
AUDIT = $(TOOLS)/pip-audit --strict --require-hashes --disable-pip  # strict: a package nobody knows is an error

.PHONY: demo quick datasets dry-run test test-slow test-bits test-reliability bench-quick bench-gpu parity lint lock audit clean docs docs-test

$(VENV)/demo.installed: requirements.txt requirements-demo.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --progress-bar on -r requirements-demo.txt
	touch $@

$(VENV)/dev.installed: $(VENV)/demo.installed requirements-dev.txt requirements-synthesis.txt requirements-export.txt \
  requirements-distributed.txt
	$(BIN)/python -m pip install -r requirements-dev.txt
	touch $@

demo: $(VENV)/demo.installed  ## install, render the demo world, train, evaluate, report under runs/demo/
	$(BIN)/python -m scripts.demo --out runs/demo

quick: $(VENV)/demo.installed  ## the same with 2 + 3 epochs: to see what there is, not how good it is
	$(BIN)/python -m scripts.demo --quick --out runs/quick

datasets: $(VENV)/demo.installed  ## install and unpack ELPV and Textile, real and simulated pictures with labels only, under data/
	$(BIN)/python -m pip install -r requirements-datasets.txt
	$(BIN)/python -m dataset.prepare --dataset ELPV --data_root data --overwrite
	$(BIN)/python -m dataset.prepare --dataset Textile --data_root data --overwrite

dry-run: $(VENV)/demo.installed  ## the study on real weights, rehearsed: tiny CLIP, a few pictures, one minute of one core
	rm -rf runs/dry-run
	OMP_NUM_THREADS=1 $(BIN)/python -m studies.real_study --dry_run --out runs/dry-run --seeds 111

test: $(VENV)/dev.installed  ## install, run the quick tests
	$(PYTEST)

test-slow: $(VENV)/dev.installed  ## the exhaustive sets
	$(BIN)/python -m pytest -m slow

test-bits: $(VENV)/dev.installed  ## the claims of bit equality once more, on torch's kernels for other processors
	ATEN_CPU_CAPABILITY=avx2 $(PYTEST) -m "bit_equality and not slow"
	ATEN_CPU_CAPABILITY=default $(PYTEST) -m "bit_equality and not slow"

test-reliability: $(VENV)/dev.installed  ## faults injected into everything that is read and written; counts under results/reliability/
	$(BIN)/python tests/reliability.py

bench-quick: $(VENV)/dev.installed  ## every benchmark as --quick: to see that it runs, and the tiny CLIP's ratios
	for name in training_step evaluation metrics loader scaling memory loading matrix_products; do \
	  OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.$$name --quick || exit 1; done
	for name in cross_attention_cost interruption_cost; do \
	  OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.$$name --random_weights --img_size 64 --device cpu --repeats 1 \
	    || exit 1; done

bench-gpu: $(VENV)/demo.installed  ## what a GPU is wanted for, into results/performance/gpu; needs CUDA and an hour or two
	$(BIN)/python -m benchmarks.gpu --out results/performance/gpu

$(VENV)/docs.installed: $(VENV)/demo.installed requirements-docs.txt
	$(BIN)/python -m pip install -r requirements-docs.txt
	touch $@

docs: $(VENV)/docs.installed  ## the site of docs/ under runs/site/; a broken link or a page nobody lists is an error
	$(BIN)/python -m mkdocs build --strict
	$(BIN)/python -c "import nbformat; nbformat.validate(nbformat.read('docs/quick_start.ipynb', as_version=4))"

docs-test: $(VENV)/dev.installed  ## do the tutorials and the notebook as a reader does, on the tiny CLIP
	$(BIN)/python -m pytest -m slow tests/docs

parity: $(VENV)/demo.installed  ## compare with values recorded from AA-CLIP (1 GB in the temporary folder, 6 GB of memory)
	$(BIN)/python tests/parity/parity.py check --golden $(GOLDEN)

lint: $(VENV)/dev.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

$(VENV)/tools.installed:
	$(PYTHON) -m venv $(VENV)/tools
	$(TOOLS)/python -m pip install uv pip-audit
	touch $@

lock: $(VENV)/tools.installed  ## newest versions that fit the requirements, with hashes, for every platform
	$(LOCK) --python-version 3.10 requirements.txt -o requirements.lock
	$(LOCK) --python-version 3.11 requirements-synthesis.txt -o requirements-synthesis.lock

audit: $(VENV)/tools.installed  ## known vulnerabilities of what the lock files pin; asks a service on the network
	$(AUDIT) --requirement requirements.lock
	$(AUDIT) --requirement requirements-synthesis.lock

clean:
	rm -rf runs/demo .pytest_cache .ruff_cache
