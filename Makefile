# Everything a user types. `make help` lists it.
PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
READY := $(VENV)/.ready

.DEFAULT_GOAL := help
.PHONY: help setup setup-bench setup-triton setup-lint lint demo test test-slow test-gpu gpu report status watch clean lock mechanisms long long-memory performance reliability

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(READY)  ## make .venv from the lock file (demo and test do this themselves)

$(READY): requirements.lock
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(0 if v >= (3, 10) else f"Python 3.10 or newer is needed, $(PYTHON) is {v[0]}.{v[1]}; name another: make setup PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --disable-pip-version-check -q -r requirements.lock
	@touch $(READY)

setup-bench: setup  ## add the other implementations that mode=bench measures beside ours
	$(PY) -m pip install --disable-pip-version-check -q -r requirements-bench.lock

setup-triton: setup  ## add Triton, whose interpreter tries the kernels for GPUs on a CPU (0.3 GB to load; torch for GPUs brings its own)
	$(PY) -c 'import triton' 2>/dev/null || $(PY) -m pip install --disable-pip-version-check -q triton==3.9.0

setup-lint: setup
	$(PY) -c 'import ruff, mypy' 2>/dev/null || $(PY) -m pip install --disable-pip-version-check -q ruff==0.17.6 mypy==2.4.1

lint: setup-lint  ## what CI asks of the code's form: ruff's rules and format, and the types
	$(PY) -m ruff check
	$(PY) -m ruff format --check
	$(PY) -m mypy

demo: setup  ## a small real sweep on text that is on your disk already, and its report (about ten minutes on two cores)
	$(PY) run.py -m experiment=quick
	@echo 'Where efficient attention pays on this machine: a minute or two of training steps at 512, 2,048 and 8,192 tokens'
	@$(PY) run.py mode=bench bench=crossover > /dev/null
	@$(PY) report.py 'runs=[multirun/quick,multirun/bench/crossover]' out=multirun/quick/report
	@echo "Your own text: $(PY) run.py -m dataset=files dataset.path=tickets.csv dataset.text=body dataset.label=team attention=sdpa,performer seed=0,1,2"

test: setup  ## the fast tests (a few minutes, no network, no GPU)
	$(PY) -m pytest -q -n 2

test-slow: setup  ## the slow tests too, with every combination of mechanism, position and mask (an hour)
	XCLS_TESTS=full $(PY) -m pytest -q -m 'slow or not slow'

test-gpu: setup  ## the tests that need a GPU: contract, every dtype, training, resume, memory, 16,384 tokens
	$(PY) -m pytest -q -n 2 -m gpu tests/gpu

gpu: setup-bench  ## all that one GPU can tell in ten minutes; writes the tables of docs/gpu.md
	TEXT='$(TEXT)' tests/gpu/run.sh

report: setup  ## the report over everything under multirun/, pretrain/, finetune/
	$(PY) report.py

ANY_PY = $(firstword $(wildcard $(PY)) $(PYTHON))
status:  ## where all runs stand; of one sweep: make status SWEEP=multirun/quick (fails where a run has failed)
	@$(ANY_PY) -m xcls.runs.status $(SWEEP)

watch:  ## the same every few seconds, until Ctrl-C
	@$(ANY_PY) -m xcls.runs.status --watch -- $(SWEEP)

BENCH := $(PY) run.py mode=bench
MECHANISMS := sdpa,sdpa_fused,performer,performer_oprf,performer_sderf,performer_hyperbolic,performer_relu,performer_band,performer_band_oprf
HASHING := reformer,"reformer:num_hashes=2","reformer:num_hashes=4",reformer_local,reformer_shared
LENGTHS := [512,1024,4096,16384]
TRAINED_SDPA ?= finetune/imdb_ft
TRAINED_REFORMER ?= pretrain/trained_reformer
ON_TRAINED := 'bench.seq_lens=[64]' 'bench.dtypes=[fp32]' bench.others=false bench.memory=false bench.rounds=1

mechanisms: setup  ## measure the tables of docs/mechanisms.md anew (two hours on two cores that do nothing else)
	$(BENCH) bench=attention bench.name=attention 'bench.attentions=[sdpa,sdpa_fused,performer,reformer,"reformer:num_hashes=4"]' \
	  'bench.seq_lens=$(LENGTHS)' 'bench.dtypes=[bf16,fp32]' bench.seconds=40 bench.error=false
	$(BENCH) bench=attention bench.name=plain bench.allocator=plain 'bench.attentions=[sdpa,sdpa_fused,performer,reformer,"reformer:num_hashes=4"]' \
	  'bench.seq_lens=[512]' 'bench.dtypes=[bf16,fp32]' bench.seconds=40 bench.error=false
	$(BENCH) bench=step bench.name=gate 'bench.attentions=[sdpa,sdpa_fused,performer,reformer,"reformer:num_hashes=4"]' \
	  'bench.seq_lens=[512]' 'bench.dtypes=[fp32,bf16]' bench.seconds=60
	$(BENCH) bench=attention bench.name=modifications 'bench.attentions=[$(MECHANISMS),reformer,"reformer:num_hashes=2",reformer_local,reformer_shared,reformer_learned,smyrf,window,mean]' \
	  'bench.seq_lens=[512,4096]' 'bench.dtypes=[bf16]' bench.others=false
	[ ! -d $(TRAINED_SDPA) ] || $(BENCH) bench=attention bench.name=trained_sdpa 'bench.attentions=[$(MECHANISMS),smyrf,window,mean]' \
	  $(ON_TRAINED) bench.trained=$(TRAINED_SDPA)
	[ ! -d $(TRAINED_REFORMER) ] || $(BENCH) bench=attention bench.name=trained_reformer 'bench.attentions=[$(HASHING),reformer_learned,window,mean]' \
	  $(ON_TRAINED) bench.trained=$(TRAINED_REFORMER)
	$(MAKE) long long-memory

LONG := bench=step 'bench.seq_lens=[16384]' 'bench.dtypes=[bf16]'
SLOW := bench.rounds=5 bench.least_rounds=1

long: setup  ## of these, the training steps at 16,384 tokens (twenty minutes on two cores that do nothing else)
	$(BENCH) $(LONG) bench.name=long 'bench.attentions=[sdpa,sdpa_fused,performer,reformer,"reformer:num_hashes=4"]' $(SLOW) bench.seconds=90
	$(BENCH) $(LONG) bench.name=long_positions 'bench.positions=[none,sin,learned,relative]' 'bench.attentions=[performer,reformer]' \
	  'bench.references=[performer]' bench.memory=false $(SLOW) bench.seconds=60
	$(BENCH) bench=step 'bench.seq_lens=[8192]' 'bench.dtypes=[bf16]' bench.name=long_whole 'bench.attentions=[sdpa,sdpa_fused,performer,reformer]' \
	  'bench.references=[sdpa]' $(SLOW) bench.seconds=60
	$(PY) -m xcls.bench.table docs/mechanisms.md

long-memory: setup  ## of these, the memory at 16,384 tokens of every attention and position (half an hour; the machine may be busy)
	$(BENCH) $(LONG) bench.name=long_memory 'bench.positions=[none,sin,learned,relative,rope]' bench.time=false \
	  'bench.attentions=[$(MECHANISMS),$(HASHING),reformer_learned,smyrf,window,mean]'
	$(BENCH) $(LONG) bench.name=long_recomputed 'bench.attentions=[sdpa,sdpa_fused,performer,reformer]' bench.time=false \
	  bench.gradient_checkpointing=true
	$(PY) -m xcls.bench.table docs/mechanisms.md

TEXT ?= dataset=imdb  # of the trainings beside transformers: dataset.path=… where there is no network
BESIDE := bench=training $(TEXT) dataset.limit=3000 size=mini finetuning.batch_size=32 finetuning.embedding_lr_factor=1 bench.rounds=3 bench.steps_per_segment=5

performance: setup  ## measure the tables of docs/performance.md anew (half an hour on two cores that do nothing else)
	$(BENCH) $(BESIDE) bench.name=training seq_len=256
	$(BENCH) bench=growth
	$(PY) -m xcls.bench.table docs/performance.md

reliability: setup  ## try the faults, a thousand kills among them (half an hour), and write docs/reliability.md
	$(PY) -m tests.faults.reliability 1000 docs/reliability.md


COMPILE = $(VENV)/bin/uv pip compile --universal --python-version 3.10 --no-header --no-annotate pyproject.toml --extra test
PLAIN := grep -Ev '^(nvidia-|cuda-|triton)'
lock: setup  ## make requirements.lock and requirements-bench.lock anew (needs the network)
	$(PY) -m pip install -q uv
	{ sed -n '/^#/p' requirements.lock; $(COMPILE) | $(PLAIN); } > requirements.new && mv requirements.new requirements.lock
	{ sed -n '/^[#-]/p' requirements-bench.lock; $(COMPILE) --extra bench -c requirements.lock | $(PLAIN) | grep -vxFf requirements.lock; } \
	  > requirements.new && mv requirements.new requirements-bench.lock

clean:  ## remove the virtual environment and caches (runs stay)
	rm -rf $(VENV) .pytest_cache
