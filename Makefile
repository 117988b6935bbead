# The commands of this project; README.md explains them. Everything is installed into .venv, nothing outside the checkout.
PYTHON ?= python3
VENV ?= .venv
PY = $(VENV)/bin/python
# Another version: make test VENV=.venv-2.10 TORCH="torch==2.10.0 torchvision==0.25.0"
TORCH ?= torch torchvision
export TORCH
SEED ?= 0

.PHONY: build demo test test-slow bench gpu-check lint docs clean

# torch first: the extension is then built against the very torch that runs it.
$(VENV)/ready: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --quiet --upgrade pip
	$(PY) -m pip install --quiet "setuptools>=77" pybind11 ninja $(TORCH)
	printf '%s\n' "$$TORCH" > $@

# Without isolation pip does not ask what the build needs: the CUDA compiler packages, where no toolkit fits.
build: $(VENV)/ready
	@[ ! -s $(VENV)/ready ] || [ "$$(cat $(VENV)/ready)" = "$$TORCH" ] || { \
	    echo "error: $(VENV) was made with TORCH=\"$$(cat $(VENV)/ready)\": give the same, or another folder with VENV=" >&2; \
	    exit 1; }
	$(PY) -m build_tools.backend | xargs -r $(PY) -m pip install --quiet
	$(PY) -m pip install --quiet --no-build-isolation -e ".[test]"
	$(PY) -m gid_cuda

demo: build
	$(PY) scripts/train.py --cfg configs/demo_teacher.yaml --overwrite seed=$(SEED)
	$(PY) scripts/train.py --cfg configs/demo_student.yaml --overwrite seed=$(SEED)
	$(PY) scripts/train.py --cfg configs/demo.yaml --overwrite seed=$(SEED)
	$(PY) scripts/visualize.py --cfg configs/demo.yaml --weights runs/demo/distilled/best.pt --output runs/demo/pictures \
	    --curves runs/demo/student runs/demo/distilled
	$(PY) scripts/compare.py runs/demo/teacher runs/demo/student runs/demo/distilled

test: build
	$(PY) -m pytest -q -m "not slow and not cuda"

test-slow: build
	$(PY) -m pytest -q -m "slow and not cuda"

# Every operator and the whole criterion beside plain PyTorch, torch.compile and torchvision. BENCH: more options.
bench: build
	$(PY) scripts/benchmark.py --json runs/benchmark.json $(BENCH)

# On a machine with a GPU and CUDA, without network: no virtual environment, nothing is downloaded. PYTHON has torch,
# pytest, hypothesis and what pyproject.toml lists. Nine minutes at most.
gpu-check:
	exec $(PYTHON) benchmarks/gpu_check.py "$(or $(OUT),benchmarks/results)"

lint: build
	$(PY) -m ruff check .

# The pages of docs/ as a site in build/site; fails where a link or an anchor leads nowhere.
docs: build
	$(PY) -m pip install --quiet -e ".[docs]" --no-build-isolation
	$(PY) -m mkdocs build --strict

clean:
	rm -rf build *.egg-info gid_cuda/*.so .pytest_cache .hypothesis .ruff_cache
