# From a bare machine to the rendered book: `make book`. Needs make, git and Python >= 3.11
# with venv; everything else is installed into .venv.

PYTHON      ?= python3
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu
DATA        ?= simulated

# What the command line gives becomes part of commands and file names: plain names only.
MARKS   := ' " ` $$ ; & | < > * ? \ ( ) { }
marks_in = $(strip $(foreach mark,$(MARKS),$(findstring $(mark),$(value $(1)))))
ifneq ($(call marks_in,TISSUE)$(findstring /,$(value TISSUE)),)
$(error TISSUE must be the name of a file in notebooks/tissues; got "$(value TISSUE)")
endif
ifneq ($(call marks_in,DATA),)
$(error DATA must be a folder whose name has none of $(MARKS); got "$(value DATA)")
endif
ifneq ($(call marks_in,RUNS),)
$(error RUNS must be names of folders in _build/runs; got "$(value RUNS)")
endif
ifneq ($(filter tissue,$(MAKECMDGOALS)),)
ifneq ($(call marks_in,NAME),)
$(error NAME must consist of letters, digits, _ and -; got "$(value NAME)")
endif
endif

NOTEBOOKS := 01_extraction 02_sae 03_cds 04_causal 05_annotation explorer 06_calibration 07_any_transformer scaling results

# One set of folders for each data set: the embedded one, ENCODE's, a folder of tissue
# files, or one tissue file, which is at the same time the parameters of the notebooks.
TOC        := _toc.yml
PARAMETERS  = -y '{run: _build/runs/$(RUN), data: $(DATA)}'
ifneq ($(TISSUE),)
RUN        := $(TISSUE)
TISSUES    := notebooks/tissues/$(TISSUE).yml
SUFFIX     := -tissue-$(TISSUE)
OUTPUT     := _build/report-$(TISSUE)
TOC        := book/report_toc.yml
PARAMETERS := -f $(TISSUES)
NOTEBOOKS  := 01_extraction 02_sae 03_cds 04_causal 05_annotation explorer results
ifeq ($(wildcard $(TISSUES)),)
ifneq ($(filter run check-tissue,$(MAKECMDGOALS)),)
$(error TISSUE=$(TISSUE): there is no $(TISSUES); `make tissue NAME=$(TISSUE)` begins one)
endif
endif
else ifneq ($(filter compare,$(MAKECMDGOALS)),)
RUNS       ?= simulated kidney kidney_transfer
TISSUES    := $(wildcard $(RUNS:%=_build/runs/%/*.parquet))
SUFFIX     := -compare
OUTPUT     := _build/compare
TOC        := book/compare_toc.yml
PARAMETERS := -y '{runs: [$(foreach run,$(RUNS),_build/runs/$(run),)]}'
NOTEBOOKS  := compare_tissues
else ifeq ($(DATA),simulated)
RUN    := simulated
SUFFIX :=
OUTPUT := .
else ifeq ($(DATA),encode)
RUN     := encode
TISSUES := $(wildcard src/helpers/resources/encode/*.yml)
SUFFIX  := -encode
OUTPUT  := _build/book-encode
else
ifneq ($(words $(DATA)),1)
$(error DATA must be one folder without spaces; got "$(DATA)")
endif
RUN     := $(notdir $(patsubst %/,%,$(DATA)))
TISSUES := $(wildcard $(patsubst %/,%,$(DATA))/*.yml)
ifeq ($(TISSUES),)
$(error DATA=$(DATA) holds no tissue file (*.yml); expected a folder with one per tissue)
endif
ifneq ($(filter simulated encode,$(RUN)),)
$(error DATA=$(DATA): the name "$(RUN)" belongs to data of the project; rename the folder)
endif
SUFFIX := -$(RUN)
OUTPUT := _build/book$(SUFFIX)
endif

BIN      := .venv/bin
READY    := .venv/.ready
BOOK     := _build/book$(SUFFIX)
LOGS     := _build/logs$(SUFFIX)
HTML     := $(OUTPUT)/_build/html/index.html
PACKED   := _build/book$(SUFFIX).zip
STAGED   := $(BOOK)/notebooks
STAMPS   := $(BOOK)/.stamps
EXECUTED := $(NOTEBOOKS:%=$(STAGED)/%.ipynb)

PAPERMILL := $(BIN)/papermill -k python3 --no-progress-bar $(PARAMETERS) $(ARGS)

# Notebooks that do not read each other run side by side.
MAKEFLAGS += --jobs=2

# Spinning OpenMP threads starve whatever else runs on a small machine.
export OMP_WAIT_POLICY := PASSIVE
export PYTHONHASHSEED := 0
export PYDEVD_DISABLE_FILE_VALIDATION := 1
export JUPYTER_PLATFORM_DIRS := 1

.PHONY: help book book-offline run compare tissue check-tissue test test-full-size test-browser pretrain benchmark notebooks clean FORCE
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-14s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))
	@echo
	@echo '  make book DATA=encode     the same book from public ATAC-seq and the published model'
	@echo '  make book DATA=FOLDER     the same book from a folder of tissue files'
	@echo '  make run TISSUE=kidney    a report on the tissue of notebooks/tissues/kidney.yml'
	@echo '  make tissue NAME=heart    begin notebooks/tissues/heart.yml'
	@echo '  make book ARGS="..."      further papermill options, such as -p device cuda'
	@echo '  make test ARGS="..."      further pytest options, such as -k cds'

book: $(HTML) ## run the notebooks, render the book and say where it lies
	@echo "The book: file://$(abspath $(HTML))"

# Pages ask the network for nothing (book/_ext/offline_pages.py): a copy is all it takes.
book-offline: $(HTML) ## pack the book into one file to read where there is no network
	@rm -f $(PACKED) && $(BIN)/python -m zipfile -c $(PACKED) $(dir $(HTML))
	@echo "Unpack $(PACKED) anywhere and open html/index.html"

run: $(HTML) ## run the notebooks for one TISSUE and render its report
	@echo "The report: file://$(abspath $(HTML))"

compare: $(HTML) ## render a report on finished runs, RUNS="simulated kidney ..."
	@echo "The report: file://$(abspath $(HTML))"

tissue: $(READY) ## begin a tissue file, NAME=...
	@$(BIN)/python -m helpers.new_tissue '$(NAME)'

check-tissue: $(READY) ## say everything that is wrong with a tissue file, TISSUE=...
	@$(BIN)/python -m helpers.new_tissue --check '$(TISSUES)'

test: $(READY) ## run the tests, the slow ones included
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist loadfile -m 'not full_size and not network and not browser' $(ARGS)

test-full-size: $(READY) ## test the published model at its size (minutes, 8 GB)
	$(BIN)/pytest -m full_size $(ARGS)

test-browser: .venv/.browser ## look at the rendered book with the system's Chromium
	CHROMATIN_BOOK=$(OUTPUT)/_build/html $(BIN)/pytest -m browser tests/test_browser.py $(ARGS)

pretrain: $(READY) ## train the small EpiBERT that ships with the package
	$(BIN)/python -m helpers.small_model $(ARGS)

benchmark: $(READY) ## measure speed and quality (benchmarks/)
	@for script in benchmarks/*.py; do $(BIN)/python "$$script" $(ARGS) || exit 1; done

notebooks: $(READY) ## bring notebooks/*.ipynb in step with notebooks/*.py
	$(BIN)/jupytext --quiet --set-kernel python3 --to ipynb --update notebooks/*.py

clean: ## remove everything built; .venv stays
	rm -rf _build

# --- Environment -------------------------------------------------------------------------

# torch comes first and alone: the CPU index spares several GB of CUDA packages, and asked
# for every other package too, an index that cannot be reached would be retried for hours.
# An installation that was cut short is thrown away, since pip may take a package that is
# only half there for installed.
$(READY): pyproject.toml constraints.txt
	@command -v $(PYTHON) > /dev/null || { echo 'error: $(PYTHON) not found: install Python 3.11 or newer, or name it: make PYTHON=/path/to/python3' >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "error: Python 3.11 or newer is needed; $(PYTHON) is $$($(PYTHON) --version 2>&1). Name another: make PYTHON=/path/to/python3" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2> /dev/null || { echo 'error: $(PYTHON) comes without venv; on Debian or Ubuntu: apt install python3-venv' >&2; exit 1; }
	@if test -e .venv/.installing; then rm -rf .venv; fi
	@echo 'Installing into .venv (about 1.6 GB; a few minutes the first time)'
	@$(PYTHON) -m venv .venv
	@rm -f $@ && touch .venv/.installing
	@$(BIN)/pip install --quiet --retries 0 --extra-index-url $(TORCH_INDEX) -c constraints.txt torch
	@$(BIN)/pip install --quiet -c constraints.txt -e '.[book,test]'
	@mv .venv/.installing $@

.venv/.browser: $(READY)
	@$(BIN)/pip install --quiet -c constraints.txt -e '.[browser]'
	@touch $@

# --- Executed notebooks ------------------------------------------------------------------

# What each notebook reads from the ones before it.
$(STAGED)/02_sae.ipynb:        $(STAGED)/01_extraction.ipynb
$(STAGED)/03_cds.ipynb:        $(STAGED)/01_extraction.ipynb $(STAGED)/02_sae.ipynb
$(STAGED)/04_causal.ipynb:     $(STAGED)/02_sae.ipynb $(STAGED)/03_cds.ipynb
$(STAGED)/05_annotation.ipynb: $(STAGED)/02_sae.ipynb $(STAGED)/03_cds.ipynb
$(STAGED)/explorer.ipynb:      $(STAGED)/03_cds.ipynb $(STAGED)/04_causal.ipynb $(STAGED)/05_annotation.ipynb
$(STAGED)/06_calibration.ipynb: $(STAGED)/02_sae.ipynb $(STAGED)/03_cds.ipynb
$(STAGED)/results.ipynb:       $(filter-out %/results.ipynb,$(EXECUTED))

# Pages of features lie beside the pages of the book; Sphinx copies them as they are.
$(STAGED)/explorer.ipynb: PAGES = -p pages $(BOOK)/extra/features

# Kernels that start at the same time may draw the same port: who loses starts again.
NO_KERNEL := Address already in use

# A failed notebook stays in $(LOGS) with its traceback; only a finished one is renamed into
# the book, so that an interrupted run is never taken for a complete one.
$(EXECUTED): $(STAGED)/%.ipynb: $(STAMPS)/%.sum $(STAMPS)/shared.sum | $(READY)
	@mkdir -p $(STAGED) $(LOGS)
	@echo 'notebooks/$*.ipynb: running'
	@start=$$(date +%s); \
	run() { $(PAPERMILL) $(PAGES) notebooks/$*.ipynb $(LOGS)/$*.ipynb > $(LOGS)/$*.log 2>&1; }; \
	if run || { grep -q "$(NO_KERNEL)" $(LOGS)/$*.log && run; }; then \
	    mv $(LOGS)/$*.ipynb $@; \
	    echo "notebooks/$*.ipynb: done in $$(($$(date +%s) - start)) s"; \
	else \
	    sed -n '/^Exception encountered/,$$p' $(LOGS)/$*.log | grep . >&2 || tail -n 30 $(LOGS)/$*.log >&2; \
	    echo 'error: notebooks/$*.ipynb failed; as far as it came: $(LOGS)/$*.ipynb' >&2; \
	    exit 1; \
	fi

# Stamps change only when the content they stand for does: a checkout or a touch reruns
# nothing, a changed parameter, helper or tissue file reruns what depends on it.
keep_if_same = cmp -s $@.new $@ && rm $@.new || mv $@.new $@

$(NOTEBOOKS:%=$(STAMPS)/%.sum): $(STAMPS)/%.sum: FORCE
	@mkdir -p $(STAMPS)
	@cksum notebooks/$*.ipynb > $@.new
	@$(keep_if_same)

$(STAMPS)/shared.sum: FORCE
	@mkdir -p $(STAMPS)
	@echo '$(subst ','\'',$(PAPERMILL))' > $@.new
	@cksum constraints.txt $(TISSUES) >> $@.new
	@find src/helpers -type f ! -name '*.pyc' | LC_ALL=C sort | xargs cksum >> $@.new
	@$(keep_if_same)

$(STAMPS)/pages.sum: FORCE
	@mkdir -p $(STAMPS)
	@find _config.yml $(TOC) book -type f | LC_ALL=C sort | xargs cksum > $@.new
	@$(keep_if_same)

# --- HTML --------------------------------------------------------------------------------

# --all: an incremental build would pass over the warnings of pages it does not read again.
$(HTML): $(EXECUTED) $(STAMPS)/pages.sum | $(READY)
	@echo 'rendering the book'
	@mkdir -p $(LOGS)
	@rm -rf $(BOOK)/book && cp -R _config.yml book $(BOOK) && cp $(TOC) $(BOOK)/_toc.yml && mkdir -p $(BOOK)/extra
	@$(BIN)/jupyter-book build --all -W --keep-going -n $(BOOK) --path-output $(OUTPUT) > $(LOGS)/render.log 2>&1 \
	    || { grep -E 'WARNING|ERROR' $(LOGS)/render.log >&2; echo 'error: the book has warnings; all output: $(LOGS)/render.log' >&2; exit 1; }
	@touch $@
