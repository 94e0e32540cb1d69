# Needs Python 3.11 to 3.14; everything else is installed into .venv, once.
PYTHON ?= $(if $(filter Windows_NT,$(OS)),python,python3)
BIN := .venv/$(if $(filter Windows_NT,$(OS)),Scripts,bin)
ARGS ?=
# The recipes are for a Unix shell. Where make finds none on Windows, SHELL is sh.exe all the same.
ifeq ($(OS)$(SHELL),Windows_NTsh.exe)
$(error make needs a Unix shell: run it in Git Bash, or do without it: \
	'pip install -r requirements.txt', then 'python train.py')
endif

.PHONY: help train quick record evaluate variants demo bench check test test-all lint clean

help:
	@echo "make train     train on CIFAR-10: best.pt, last.pt and results/"
	@echo "make quick     the same with fewer epochs, in four to six minutes, into results/quick/"
	@echo "make record    train almost six hours, for the highest accuracy, into results/record/"
	@echo "make evaluate  what best.pt learned and where it fails"
	@echo "make variants  three ways to shrink and three norms, a few epochs each, compared"
	@echo "make demo      trains and evaluates on handwritten digits in a minute or two, into results/demo/"
	@echo "make bench     how fast training is here, part by part"
	@echo "make check     the network and the assignment's rules"
	@echo "make test      the tests to run after every edit, in about four minutes"
	@echo "make test-all  all tests: kills, damaged files, several processes, the guide"
	@echo "make lint      style and format"
	@echo "make clean     remove .venv and caches; data, checkpoints and results stay"
	@echo
	@echo "Options go through ARGS, as in: make train ARGS=\"--epochs 40 --seed 1\""

train: .venv/ready
	$(BIN)/python tools/train_or_demo.py $(ARGS)

quick: .venv/ready
	$(BIN)/python train.py --epochs 7 --name quick $(ARGS)

# Of recipes whose trainings need each other, in folders of names of their own.
ONE_SEED = $(if $(filter --seeds% --name% --ckpt% --out% --dry-run --find-lr,$(ARGS)),$(error \
	make $@ trains one seed, under names of its own: leave out $(ARGS)))

# The first training teaches the second; the last one goes on from the second, and learns from both.
# Its batches and rates are those that it was measured with.
LONG := --arch record --epochs 80 --move 0.9 --hole 0.5 --label-smoothing 0 --continue
TAUGHT := --epochs 20 -b 256 --small 0 --schedule cosine --lr 0.12 --muon-lr 0.012 \
	--hole 0.4 --label-smoothing 0 --continue
record: .venv/ready
	$(ONE_SEED)$(BIN)/python train.py --name record-1 $(LONG) $(ARGS)
	$(BIN)/python train.py --name record-2 $(LONG) --teacher results/record-1/last.pt $(ARGS)
	$(BIN)/python train.py --name record --init results/record-2/last.pt $(TAUGHT) \
		--teacher results/record-1/last.pt --teacher results/record-2/last.pt $(ARGS)

evaluate: .venv/ready
	$(BIN)/python evaluate.py $(ARGS)

# The default network, then two other ways to shrink its maps and two other norms. All on images of
# full size, as the stride-free network takes no smaller ones.
variants: .venv/ready
	$(ONE_SEED)$(BIN)/python train.py --epochs 4 --small 0 --name dilated $(ARGS)
	$(BIN)/python train.py --epochs 4 --small 0 --name strided --downsample strided $(ARGS)
	$(BIN)/python train.py --epochs 4 --small 0 --name stride-free --downsample stride-free $(ARGS)
	$(BIN)/python train.py --epochs 4 --small 0 --name group --norm group $(ARGS)
	$(BIN)/python train.py --epochs 4 --small 0 --name layer --norm layer $(ARGS)
	$(BIN)/python compare.py $(addprefix results/,dilated strided stride-free group layer)

demo: .venv/ready
	$(BIN)/python tools/demo.py $(ARGS)

bench: .venv/ready
	$(BIN)/python tools/bench.py $(ARGS)

check: .venv/ready
	$(BIN)/python model.py $(ARGS)

test: .venv/ready
	$(BIN)/python -m pytest -q -m "not slow" tests $(ARGS)

test-all: .venv/ready
	$(BIN)/python -m pytest -q tests $(ARGS)

lint: .venv/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# Made last, so that an installation that was interrupted starts again.
.venv/ready: requirements.txt
	@$(PYTHON) -c "import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 15) and \
	'the packages are for Python 3.11 to 3.14: make PYTHON=python3.13 names another one')"
	@# One of another Python, or without one, would be kept as it is.
	@$(BIN)/python -c "import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 15))" \
	2>/dev/null || rm -rf .venv
	$(PYTHON) -m venv .venv || (echo "python -m venv failed: on Debian, Ubuntu and Colab \
	'apt-get install python3-venv' first, or 'pip install -r requirements.txt' and \
	'python train.py' without make" >&2; exit 1)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	$(BIN)/python -c "open('.venv/ready', 'w').close()"

clean:
	rm -rf .venv .pytest_cache .ruff_cache .hypothesis __pycache__ tests/__pycache__ tools/__pycache__
