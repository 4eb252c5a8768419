# Cells in, embeddings, tables and figures out. Targets are the results themselves. Works with GNU make 3.81 and later.

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.SUFFIXES:
.PHONY: all filter train benchmarks figures scores conditioning test lint format setup clean help resolved FORCE

VARIABLES := DATASET K DATA MIN_CELLS SEED N_STARTS DONOR_KEY CELL_TYPE_KEY LAYER FRACTIONAL DROP_MISSING \
    KEEP_UNLABELED DROP_EMPTY MAX_CELLS FOREST LISI N_JOBS STRENGTH LABELS GENE_WEIGHTS DEVICE SHARDS EXECUTOR PYTHON

empty :=
space := $(empty) $(empty)
comma := ,
quoted = '$(subst ','\'',$(1))'

# ---- Data set and number of programs ---------------------------------------------------------------------------------
# Assigned here, so that only the command line sets them, and not the environment.
DATA :=
SHARDS :=
DATASET := $(if $(DATA),$(patsubst %.h5ad,%,$(notdir $(DATA))),demo)
params := $(wildcard notebooks/params/$(DATASET).yaml)
K := $(shell sed -n 's/^k: *\([0-9][0-9]*\).*/\1/p' $(params) /dev/null)
K := $(or $(K),$(shell sed -n 's/^k: int = \([0-9][0-9]*\).*/\1/p' notebooks/02_train_base_nmf.py))

ifneq ($(word 2,$(DATA)),)
$(error DATA='$(DATA)' contains a space, which make cannot handle. Rename the file or make a link to it)
endif
ifneq ($(shell case $(call quoted,$(DATASET)) in (''|[._-]*|*[!A-Za-z0-9._-]*) echo odd;; esac),)
$(error DATASET='$(DATASET)' cannot name a folder. Use letters, digits, '.', '_' and '-')
endif
ifeq ($(params)$(DATA)$(wildcard results/$(DATASET)),)
$(error Unknown data set '$(DATASET)'. Available: $(basename $(notdir $(wildcard notebooks/params/*.yaml))). \
    For your own cells: make all DATA=cells.h5ad)
endif
ifneq ($(shell case $(call quoted,$(K)) in (''|0*|*[!0-9]*) echo odd;; esac),)
$(error K='$(K)': expected the number of programs, such as K=20)
endif

data := $(or $(DATA),$(shell sed -n "s/^data: *[\"']*\([^ \"']*\).*/\1/p" $(params) /dev/null))
simulated := $(patsubst %,data/%.h5ad,demo demo_none demo_weak demo_confounded)
# A missing file is not a prerequisite: the error of the notebook says more than that of make.
cells := $(if $(filter $(simulated),$(data)),$(data),$(wildcard $(data)))

# ---- Python ----------------------------------------------------------------------------------------------------------
# The active environment if the library is installed in it (-I ignores the library in this folder), otherwise .venv.
ifneq ($(origin PYTHON),command line)
PYTHON := $(shell for env in "$$VIRTUAL_ENV" "$$CONDA_PREFIX"; do \
    if [ -n "$$env" ] && ! [ "$$env" -ef .venv ] && "$$env/bin/python" -I -c 'import aenmf_lib' 2>/dev/null; \
    then echo "$$env/bin/python"; break; fi; done)
ifeq ($(PYTHON),)
PYTHON := .venv/bin/python
setup := .venv/made-from
broken := $(shell .venv/bin/python -c '' 2>/dev/null || echo FORCE)
endif
endif
run = "$(PYTHON)" -m aenmf_lib

ifdef PIP_FIND_LINKS
export UV_FIND_LINKS ?= $(subst $(space),$(comma),$(PIP_FIND_LINKS))
endif

.venv/made-from: pyproject.toml constraints.txt $(broken)
	@sh .ci/make-venv $(broken)

# ---- Results ---------------------------------------------------------------------------------------------------------
DIR := results/$(DATASET)
RUN := $(DIR)/k$(K)
FIGURES := clustering resolution classification classes umap programs training
MODELS := base_nmf ae_nmf cae_nmf1 cae_nmf2

notebooks := $(sort $(wildcard notebooks/0*.py))
values := $(DIR)/params/01_filter.yaml $(patsubst notebooks/%.py,$(RUN)/params/%.yaml,$(wildcard notebooks/0[2-9]*.py))
filtered := $(DIR)/filtered.h5ad
# SHARDS: one job for each part of the cells, and one that adds up their sums
shards := $(if $(SHARDS),$(patsubst %,$(DIR)/sums/%-of-$(SHARDS).npz,$(shell seq -w 0 $$(($(SHARDS) - 1)))))
sums := $(if $(SHARDS),$(DIR)/sums.npz)
models := $(patsubst %,$(RUN)/%_k$(K).h5ad,$(MODELS))
scores := $(foreach label,cell_type donor_id,$(patsubst %,$(RUN)/classification_scores/%.$(label).done,$(MODELS)))
tables := $(patsubst %,$(RUN)/%.csv,clustering_cell_type clustering_donor_id classification_cell_type \
    classification_donor_id clustering_long classification_long clustering_resolution classification_by_class \
    classification_confusion integration unseen_donors_long unseen_donors_by_class)
umap := $(RUN)/umap.h5ad
figures := $(foreach name,$(FIGURES),$(patsubst %,$(RUN)/figures/$(name).%,pdf png csv))
study := $(patsubst %,$(RUN)/%,conditioning.csv conditioning_long.csv $(patsubst %,figures/conditioning.%,pdf png csv))

# ---- Check the command line ------------------------------------------------------------------------------------------
# Python checks names and values before anything runs. Until .venv exists this is the python3 of the system.
variables = $(foreach name,$(filter-out -%,$(.VARIABLES)),$(if $(filter command,$(origin $(name))),\
    $(call quoted,$(name)=$($(name)))))
checked = --notebooks $(notebooks) --valid $(VARIABLES) --goals $(MAKECMDGOALS) --variables $(variables)
ifneq ($(filter-out 'PYTHON=% 'DATASET=% 'K=% 'EXECUTOR=%,$(variables)),)
wrong := $(shell python=$$(command -v "$(PYTHON)" || command -v python3) && \
    "$$python" -m aenmf_lib resolve $(checked) 2>&1 >/dev/null | sed -n 's/^error: \(.*\)\.$$/\1/p')
ifneq ($(wrong),)
$(error $(wrong))
endif
endif

# ---- Public targets --------------------------------------------------------------------------------------------------
ifneq ($(origin EXECUTOR),command line)
EXECUTOR := $(shell timeout 5 scontrol ping 2>/dev/null | grep -q ' UP' && echo slurm || echo local)
endif
ifeq ($(filter local slurm,$(EXECUTOR)),)
$(error EXECUTOR='$(EXECUTOR)': expected local or slurm)
endif
ifeq ($(EXECUTOR),slurm)
# On a cluster these submit jobs, each of which is make with EXECUTOR=local, and return immediately.
all filter train scores benchmarks figures conditioning: | $(setup)
	@$(call slurm,submit) --goals $@
else
all: filter train benchmarks figures  ## run filter, train, benchmarks and figures; writes results/<data set>/
filter: $(filtered) $(DIR)/01_filter.ipynb  ## read, check, filter and normalize the cells
train: $(models) $(patsubst notebooks/%.py,$(RUN)/%.ipynb,$(wildcard notebooks/0[2-5]*.py))  ## train the four models
benchmarks: $(tables) $(umap) $(RUN)/06_benchmarks.ipynb  ## clustering and classification tables, UMAP
figures: $(figures) $(RUN)/07_figures.ipynb  ## draw the figures, without any training
scores: $(scores)  ## classification in one job per model and label: make -j2 scores N_JOBS=1
conditioning: $(study) $(RUN)/08_conditioning.ipynb  ## study of conditioning on the donor; not part of all
endif
include slurm/slurm.mk

# ---- Stages ----------------------------------------------------------------------------------------------------------
# Every call resolves the values, also under 'make -n' ('+'), but writes a file only when a value in it has changed.
$(values): resolved
	+@:
resolved: | $(setup)
	+@if command -v "$(PYTHON)" >/dev/null; then $(run) resolve $(checked) $(addprefix --params ,$(params)) \
	    --out $(values) -p k $(K) $(if $(SHARDS),-p sums_path $(sums)); fi

# A stage depends on the packages of the library that it uses.
packages = $(foreach name,$(1),$(wildcard $(addprefix aenmf_lib/$(name),/*.py /*.mplstyle .py)))
# '%' replaces the last '.': only for a pattern rule does make 3.81 know that one run makes all targets.
pattern = $(foreach file,$(1),$(basename $(file))%$(patsubst .%,%,$(suffix $(file))))

# $(call stage,NOTEBOOK,FOLDER,RESULTS,INPUTS,PACKAGES,ARGUMENTS,AFTER)
# exec: a signal to make reaches the runner, not a shell.
define stage
$(call pattern,$(3) $(2)/$(1).ipynb): notebooks/$(1).py $(2)/params/$(1).yaml $(4) $(call packages,$(5)) | $(setup) $(7)
	exec $$(run) execute $$< --params $$(word 2,$$^) --report $(2)/$(1).ipynb $(6)
endef

training := data training models results metrics/neighbors metrics/validation
# $(call train,NOTEBOOK,MODEL,SUMS)
train = $(call stage,$(1),$(RUN),$(RUN)/$(2)_k$(K).h5ad,$(filtered) $(3),$(training),\
    -p cells_path $(filtered) -p out $(RUN)/$(2)_k$(K).h5ad)

$(eval $(call stage,01_filter,$(DIR),$(filtered),$$(cells),data results,-p out $(filtered)))
$(eval $(call train,02_train_base_nmf,base_nmf))
$(eval $(call train,03_train_ae_nmf,ae_nmf,$(sums)))
$(eval $(call train,04_train_cae_nmf1,cae_nmf1,$(sums)))
$(eval $(call train,05_train_cae_nmf2,cae_nmf2,$(sums)))
# If `scores` is a goal too, 06 waits for it. Otherwise 06 computes these scores itself.
$(eval $(call stage,06_benchmarks,$(RUN),$(tables) $(umap),$(models),data results metrics,-p out_dir $(RUN) \
    -p model_paths $(subst $(space),$(comma),$(models)),$(if $(filter scores,$(MAKECMDGOALS)),$(scores))))
$(eval $(call stage,07_figures,$(RUN),$(figures),$(models) $(tables) $(umap),data results figures models/programs,\
    -p tables_dir $(RUN) -p out_dir $(RUN)/figures))
$(eval $(call stage,08_conditioning,$(RUN),$(study),$(filtered),data training models metrics results conditioning \
    figures,-p cells_path $(filtered) -p out_dir $(RUN)))

$(simulated): aenmf_lib/data/simulation.py | $(setup) resolved
	$(run) simulate $@

$(shards): $(filtered) $(call packages,data training) | $(setup)
	exec $(run) sum $< --shard $(firstword $(subst -of-, ,$(@F))) $(SHARDS) --out $@

$(sums): $(shards)
	exec $(run) merge $(filtered) $^ --out $@

# $(call score,MODEL,LABEL)
define score
$(RUN)/classification_scores/$(1).$(2).done: $(RUN)/$(1)_k$(K).h5ad $(RUN)/params/06_benchmarks.yaml \
    $(call packages,data results metrics) | $(setup)
	@mkdir -p $$(@D)
	exec $$(run) score $$< --label $(2) --params $$(word 2,$$^) --notebook notebooks/06_benchmarks.py \
	    --cache $$(@:.done=.csv) --done $$@
endef
$(foreach label,cell_type donor_id,$(foreach model,$(MODELS),$(eval $(call score,$(model),$(label)))))

# ---- Development -----------------------------------------------------------------------------------------------------
test: $(setup)  ## run the tests
	"$(PYTHON)" -m pytest -n 2 --dist loadfile

lint: $(setup)  ## check style, format and the imports between packages
	"$(PYTHON)" -m ruff check .
	"$(PYTHON)" -m ruff format --check .
	"$(PYTHON)" -c 'from importlinter.cli import lint_imports_command as lint; lint()'

format: $(setup)  ## format the sources
	"$(PYTHON)" -m ruff check --fix .
	"$(PYTHON)" -m ruff format .

setup: $(setup)  ## create .venv; other targets also create it if needed

clean:  ## remove results/<data set>/ for all values of K
	@echo "Removing $(DIR)"
	@rm -rf "$(DIR)"

help:  ## show this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
	@echo '  Data sets: $(basename $(notdir $(wildcard notebooks/params/*.yaml))); your own: DATA=cells.h5ad'
	@echo '  Variables: $(VARIABLES)' | fold -s -w 110
