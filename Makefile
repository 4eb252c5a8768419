# Cells in, embeddings, tables and figures out. Targets are the results themselves. Works with GNU make 3.81 and later.

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.SUFFIXES:
.PHONY: all check filter train benchmarks figures scores conditioning test lint format setup clean help resolved FORCE

VARIABLES := DATASET DATA K MODELS QUICK MIN_CELLS SEED N_STARTS DONOR_KEY CELL_TYPE_KEY GENE_NAME_KEY LAYER FRACTIONAL \
    SAMPLE_CELLS DROP_MISSING KEEP_UNLABELED DROP_EMPTY DROP_LABELS MERGE_LABELS PRIMARY_ONLY MAX_CELLS FOREST LISI \
    N_JOBS STRENGTH LABELS GENE_WEIGHTS DEVICE SHARDS EXECUTOR PYTHON

empty :=
space := $(empty) $(empty)
comma := ,
quoted = '$(subst ','\'',$(1))'
goals := $(or $(MAKECMDGOALS),help)
# goals that read neither the data nor the variables, and those that do not read the data
development := help test lint format setup
idle := $(development) clean status watch cancel lab

# ---- Data set and number of programs ---------------------------------------------------------------------------------
set_outside := $(strip $(foreach name,$(filter-out EXECUTOR PYTHON,$(VARIABLES)),$(if $(findstring environment,\
    $(origin $(name))),$(if $(value $(name)),$(name)))))
ifneq ($(and $(set_outside),$(filter-out $(development),$(goals))),)
pairs := $(foreach name,$(set_outside),$(name)=$(value $(name)))
$(error $(pairs): set in the environment, which make does not read. Write the variable after make: \
    make $(goals) $(pairs), or remove it from the environment: unset $(set_outside))
endif
# Assigned here, so that only the command line sets them, and not the environment.
DATA :=
SHARDS :=
MODELS :=
QUICK :=
DATASET := $(if $(DATA),$(patsubst %.zarr,%,$(patsubst %.h5ad,%,$(notdir $(patsubst %/,%,$(DATA))))),demo)
DIR := results/$(DATASET)$(if $(filter true,$(QUICK)),-quick)
params := $(wildcard notebooks/params/$(DATASET).yaml)
K := $(shell sed -n 's/^k: *\([0-9][0-9]*\).*/\1/p' $(params) /dev/null)
K := $(or $(K),$(shell sed -n 's/^k: int = \([0-9][0-9]*\).*/\1/p' notebooks/02_train_base_nmf.py))

ifneq ($(word 2,$(DATA)),)
$(error DATA='$(DATA)' contains a space, which make cannot handle. Rename the file or make a link to it)
endif
ifneq ($(shell case $(call quoted,$(DATASET)) in (''|[._-]*|*[!A-Za-z0-9._-]*) echo odd;; esac),)
$(error DATASET='$(DATASET)' cannot name a folder. Use letters, digits, '.', '_' and '-', for example: \
    make $(goals) DATA=$(or $(DATA),cells.h5ad) DATASET=cells)
endif
ifeq ($(params)$(DATA)$(wildcard $(DIR))$(filter clean,$(goals)),)
$(error Unknown data set '$(DATASET)'. Available: $(basename $(notdir $(wildcard notebooks/params/*.yaml))). \
    For your own cells: make all DATA=cells.h5ad)
endif
ifneq ($(shell case $(call quoted,$(K)) in (''|0*|*[!0-9]*) echo odd;; esac),)
$(error K='$(K)': expected the number of programs, such as K=20)
endif

# the value of a name in a YAML file: with quotes, or without quotes and comment
value_of = $(shell sed -n -e "s/^$(1): *\"\(.*\)\".*/\1/p;t" -e "s/^$(1): *'\(.*\)'.*/\1/p;t" \
    -e "s/^$(1): *\(.*[^ ]\) *\#.*/\1/p;t" -e "s/^$(1): *\(.*[^ ]\) *$$/\1/p" $(2) /dev/null)
data := $(or $(DATA),$(call value_of,data,$(params)),$(call value_of,path,$(wildcard $(DIR)/input.yaml)))
cells := $(filter $(patsubst %,data/%.h5ad,demo demo_none demo_weak demo_confounded),$(data))# made by simulation
gone := $(if $(cells),,$(shell test -e $(call quoted,$(data)) || echo gone))

# ---- Python ----------------------------------------------------------------------------------------------------------
# The active environment if the library is installed in it (-I ignores the library in this folder), otherwise .venv.
setup :=
ifneq ($(origin PYTHON),command line)
PYTHON := $(shell for env in "$$VIRTUAL_ENV" "$$CONDA_PREFIX"; do \
    if [ -n "$$env" ] && ! [ "$$env" -ef .venv ] && "$$env/bin/python" -I -c 'import aenmf_lib' 2>/dev/null; \
    then echo "$$env/bin/python"; break; fi; done)
ifeq ($(PYTHON),)
PYTHON := .venv/bin/python
setup := .venv/made-from
broken := $(shell .venv/bin/python -Es -c '' 2>/dev/null || echo FORCE)
endif
endif
# -Es: without PYTHONPATH and other settings of the user, and without the packages in the user's home
run = "$(PYTHON)" -Es -m aenmf_lib

ifdef PIP_FIND_LINKS
export UV_FIND_LINKS ?= $(subst $(space),$(comma),$(PIP_FIND_LINKS))
endif

.venv/made-from: pyproject.toml constraints.txt $(broken)
	@sh .ci/make-venv $(broken)

# ---- Results ---------------------------------------------------------------------------------------------------------
RUN := $(DIR)/k$(K)
FIGURES := clustering resolution classification classes umap programs training
ALL_MODELS := Base_NMF AE_NMF CAE_NMF1 CAE_NMF2
lower = $(strip $(shell printf %s $(call quoted,$(1)) | tr 'A-Z,' 'a-z '))
all_models := $(call lower,$(ALL_MODELS))
chosen := $(if $(MODELS),$(call lower,$(MODELS)),$(all_models))
ifneq ($(filter-out $(all_models),$(chosen))$(if $(chosen),,none),)
$(error MODELS='$(MODELS)': expected some of $(ALL_MODELS), such as MODELS="Base_NMF AE_NMF")
endif
MODEL_FILES := $(filter $(chosen),$(all_models))

notebooks := $(sort $(wildcard notebooks/0*.py))
values := $(DIR)/params/01_filter.yaml $(patsubst notebooks/%.py,$(RUN)/params/%.yaml,$(wildcard notebooks/0[2-9]*.py))
filtered := $(DIR)/filtered.h5ad
input := $(DIR)/input.yaml
# SHARDS: one job for each part of the cells, and one that adds up their sums
shards := $(if $(SHARDS),$(patsubst %,$(DIR)/sums/%-of-$(SHARDS).npz,$(shell seq -w 0 $$(($(SHARDS) - 1)))))
sums := $(if $(SHARDS),$(DIR)/sums.npz)
models := $(patsubst %,$(RUN)/%_k$(K).h5ad,$(MODEL_FILES))
trained := $(foreach model,$(MODEL_FILES),$(patsubst notebooks/%.py,$(RUN)/%.ipynb,$(wildcard notebooks/0?_train_$(model).py)))
scores := $(foreach label,cell_type donor_id,$(patsubst %,$(RUN)/classification_scores/%.$(label).done,$(MODEL_FILES)))
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
ifneq ($(filter-out 'PYTHON=% 'DATASET=% 'K=% 'EXECUTOR=%,$(variables))$(and $(gone),$(filter-out $(idle),$(goals))),)
wrong := $(shell python=$$(command -v "$(PYTHON)" || command -v python3) && \
    "$$python" -Es -m aenmf_lib resolve $(checked) $(if $(filter-out $(idle),$(goals)),\
    $(if $(cells),,--data $(call quoted,$(data)))) --folder $(DIR) 2>&1 >/dev/null | sed -n 's/^error: \(.*\)\.$$/\1/p')
ifneq ($(wrong),)
$(error $(wrong))
endif
endif
# This resolves the values of the notebooks and checks the input before the first stage.
resolve = $(run) $(1) $(checked) $(addprefix --params ,$(params)) --data $(call quoted,$(data)) --folder $(DIR) \
    --run $(RUN) --models $(MODEL_FILES) --out $(values) $(if $(filter slurm,$(EXECUTOR)),--slurm) \
    -p k $(K) -p model_paths $(subst $(space),$(comma),$(models)) $(if $(SHARDS),-p sums_path $(sums))

# ---- Public targets --------------------------------------------------------------------------------------------------
ifneq ($(origin EXECUTOR),command line)
EXECUTOR := $(shell timeout 5 scontrol ping 2>/dev/null | grep -q ' UP' && echo slurm || echo local)
endif
ifeq ($(filter local slurm,$(EXECUTOR)),)
$(error EXECUTOR='$(EXECUTOR)': expected local or slurm)
endif
ifeq ($(EXECUTOR),slurm)
# On a cluster these submit jobs, each of which is make with EXECUTOR=local, and return immediately.
all filter train scores benchmarks figures conditioning: | $(setup) $(cells)
	@$(call slurm,submit) --resolve=$(call quoted,$(call resolve,resolve)) --goals $@
else
all: filter train benchmarks figures  ## run filter, train, benchmarks and figures; writes results/<data set>/
filter: $(filtered) $(DIR)/01_filter.ipynb  ## read, check, filter and normalize the cells
train: $(models) $(trained)  ## train the models
benchmarks: $(tables) $(umap) $(RUN)/06_benchmarks.ipynb  ## clustering and classification tables, UMAP
figures: $(figures) $(RUN)/07_figures.ipynb  ## draw the figures, without any training
scores: $(scores)  ## classification in one job per model and label: make -j2 scores N_JOBS=1
conditioning: $(study) $(RUN)/08_conditioning.ipynb  ## study of conditioning on the donor; not part of all
endif
check: | $(setup) $(cells)  ## report the cells that would be read, all problems, and the cost of each stage
	@$(call resolve,preflight)
include slurm/slurm.mk

# ---- Stages ----------------------------------------------------------------------------------------------------------
# Every call resolves the values and checks the input, but writes a file only when its content has changed.
# 'make -n' writes nothing: 'resolve --dry-run' prints the files that would change.
flags := $(firstword -$(MAKEFLAGS))
dry := $(if $(findstring =,$(flags)),,$(findstring n,$(filter-out --%,$(flags))))
$(values) $(input): $(if $(dry),,resolved)
	@:
$(input): | $(cells)
resolved: | $(setup) $(cells)
	@$(call resolve,resolve)
ifneq ($(and $(dry),$(filter-out $(idle),$(goals)),$(shell command -v "$(PYTHON)")),)
ifndef AENMF_KEEP_VALUES
changed := $(shell $(call resolve,resolve) --dry-run || echo stop)
ifeq ($(changed),stop)
$(error The values of the notebooks are not valid. Correct the error above)
endif
$(changed): FORCE
endif
endif

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

# If the input no longer exists, the filter cannot run: the existing filtered cells are used.
ifeq ($(gone),)
$(eval $(call stage,01_filter,$(DIR),$(filtered),$(input),data results,-p out $(filtered)))
endif
$(eval $(call train,02_train_base_nmf,base_nmf))
$(eval $(call train,03_train_ae_nmf,ae_nmf,$(sums)))
$(eval $(call train,04_train_cae_nmf1,cae_nmf1,$(sums)))
$(eval $(call train,05_train_cae_nmf2,cae_nmf2,$(sums)))
# If `scores` is a goal too, 06 waits for it. Otherwise 06 computes these scores itself.
$(eval $(call stage,06_benchmarks,$(RUN),$(tables) $(umap),$(models),data results metrics,-p out_dir $(RUN),\
    $(if $(filter scores,$(MAKECMDGOALS)),$(scores))))
$(eval $(call stage,07_figures,$(RUN),$(figures),$(models) $(tables) $(umap),data results figures programs/tables models/matching,\
    -p tables_dir $(RUN) -p out_dir $(RUN)/figures))
$(eval $(call stage,08_conditioning,$(RUN),$(study),$(filtered),data training models metrics results conditioning \
    figures,-p cells_path $(filtered) -p out_dir $(RUN)))

$(cells): aenmf_lib/data/simulation.py | $(setup)
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
$(foreach label,cell_type donor_id,$(foreach model,$(MODEL_FILES),$(eval $(call score,$(model),$(label)))))

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
	@echo '  Data sets: $(basename $(notdir $(wildcard notebooks/params/*.yaml))); your own: DATA=cells.h5ad or cells.zarr' \
	    | fold -s -w 110
	@echo '  Variables: $(VARIABLES)' | fold -s -w 110
