# Cells in, embeddings, tables and figures out. Targets are the files themselves. Works with GNU make 3.81 and later.

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.SUFFIXES:
.PHONY: all filter train scores benchmarks figures conditioning status watch cancel test lint format lab setup clean help resolved FORCE

empty :=
space := $(empty) $(empty)
comma := ,

# ---- On which cells, with which values -------------------------------------------------------------------------------
# Assigned here, so that a variable of the environment does nothing: it takes the command line to override.
OVERRIDES := DATA MIN_CELLS SEED N_STARTS DONOR_KEY CELL_TYPE_KEY LAYER FRACTIONAL DROP_MISSING KEEP_UNLABELED DROP_EMPTY MAX_CELLS FOREST LISI N_JOBS STRENGTH LABELS GENE_WEIGHTS DEVICE SHARDS
$(foreach name,$(OVERRIDES),$(eval $(name) :=))
# A name that is none would be ignored without a word.
known := DATASET K $(OVERRIDES) EXECUTOR PYTHON SHELL UV_FIND_LINKS
strange := $(strip $(foreach name,$(.VARIABLES),$(if $(filter command,$(origin $(name))),$(filter-out $(known) -%,$(name)))))
ifneq ($(strange),)
$(error $(strange): no variable of this Makefile. There are: DATASET K $(OVERRIDES). \
    Any other parameter of a notebook goes into notebooks/params/<data set>.yaml)
endif
ifneq ($(findstring ',$(DATASET)$(DATA)$(K)$(foreach name,$(OVERRIDES),$($(name)))),)
$(error A value holds a quote ('), which the shell would take for its own: name it without)
endif
DATASET := $(if $(DATA),$(patsubst %.h5ad,%,$(notdir $(DATA))),demo)
params := $(wildcard notebooks/params/$(DATASET).yaml)
K := $(shell sed -n 's/^k: *\([0-9][0-9]*\).*/\1/p' $(params) /dev/null)
K := $(or $(K),$(shell sed -n 's/^k: int = \([0-9][0-9]*\).*/\1/p' $(wildcard notebooks/02_train_base_nmf.py) /dev/null))

ifneq ($(word 2,$(DATA)),)
$(error DATA='$(DATA)' holds a space, which make cannot handle: rename the file or link to it)
endif
ifneq ($(shell case '$(DATASET)' in (''|[._-]*|*[!A-Za-z0-9._-]*) echo odd;; esac),)
$(error DATASET='$(DATASET)' is to name a folder: use letters, digits, '.', '_' and '-', and no space)
endif
ifeq ($(params)$(DATA),)
$(error There is no data set '$(DATASET)'. There are: $(basename $(notdir $(wildcard notebooks/params/*.yaml))). \
    For cells of your own: make all DATA=cells.h5ad)
endif
ifneq ($(shell case '$(K)' in (''|0*|*[!0-9]*) echo odd;; esac),)
$(error K='$(K)': expected the number of programs, such as K=20)
endif
ifneq ($(shell case '$(SHARDS)' in (0*|*[!0-9]*) echo odd;; esac),)
$(error SHARDS='$(SHARDS)': expected the number of parts in which the cells are summed over, such as SHARDS=8)
endif
ifneq ($(and $(SHARDS),$(filter clusters,$(LABELS))),)
$(error LABELS=clusters finds groups in the cells themselves, which SHARDS leaves on disk: give one of them)
endif
# The study sets strengths, labels, weights and starts side by side: of these it takes none.
unread := $(strip $(foreach name,SEED N_STARTS STRENGTH LABELS GENE_WEIGHTS MAX_CELLS N_JOBS FOREST LISI DEVICE SHARDS,$(if $(filter command,$(origin $(name))),$(name))))
ifneq ($(and $(unread),$(filter conditioning,$(MAKECMDGOALS))),)
ifeq ($(filter-out conditioning,$(MAKECMDGOALS)),)
$(error $(unread): not read by 'make conditioning', which sets several strengths, labels, weights and starts side by side. Which ones,     say in notebooks/params/$(DATASET).yaml: strengths, labels_tried, weights_tried, tried_at, starts, on, scored_cells, yardsticks)
endif
endif

data := $(or $(DATA),$(shell sed -n "s/^data: *[\"']*\([^ \"']*\).*/\1/p" $(params) /dev/null))
ifeq ($(data),)
$(error $(params) has no line 'data: cells.h5ad': write one, or give DATA=cells.h5ad)
endif
# Results of other cells are not overwritten because a file happens to bear the same name.
before := $(shell sed -n 's/^data: *//p' results/$(DATASET)/params/01_filter.yaml 2>/dev/null)
ifneq ($(if $(filter all filter train scores benchmarks figures conditioning results/%,$(MAKECMDGOALS)),$(filter-out $(data),$(before))),)
$(error results/$(DATASET)/ was made from $(before), not from $(data): give DATASET=other to keep both, or first type \
    make clean DATASET=$(DATASET))
endif
# A missing file is no prerequisite: the notebook says more about it than make would.
simulated := $(patsubst %,data/%.h5ad,demo demo_none demo_weak demo_confounded)
cells := $(if $(filter $(simulated),$(data)),$(data),$(wildcard $(data)))
given := -p k $(K) $(if $(SHARDS),-p sums results/$(DATASET)/sums.npz) $(foreach name,$(filter-out SHARDS,$(OVERRIDES)),$(if $(filter command,$(origin $(name))),\
    -p $(shell echo $(name) | tr A-Z a-z) '$($(name))'))

# ---- With which Python -----------------------------------------------------------------------------------------------
# The active environment if it holds the library (-I: the library in this folder does not count), otherwise .venv.
ifneq ($(origin PYTHON),command line)
PYTHON := $(shell for env in "$$VIRTUAL_ENV" "$$CONDA_PREFIX"; do \
    if [ -n "$$env" ] && ! [ "$$env" -ef .venv ] && "$$env/bin/python" -I -c 'import aenmf_lib' 2>/dev/null; \
    then echo "$$env/bin/python"; break; fi; done)
ifeq ($(PYTHON),)
PYTHON := .venv/bin/python
setup := .venv/made-from
gone := $(shell .venv/bin/python -c '' 2>/dev/null || echo FORCE)
endif
endif

ifdef PIP_FIND_LINKS
export UV_FIND_LINKS ?= $(subst $(space),$(comma),$(PIP_FIND_LINKS))
endif

# The last step keeps a copy of what .venv was made from: a half-made one has none, and a new date alone does nothing.
.venv/made-from: pyproject.toml constraints.txt $(gone)
	@set -e; \
	if [ -z '$(gone)' ] && cat pyproject.toml constraints.txt | cmp -s - $@; then touch $@; exit; fi; \
	for python in python3 python3.14 python3.13 python3.12 python3.11 python none; do \
	    if $$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then break; fi; \
	done; \
	if [ $$python = none ]; then echo 'No Python 3.11 or later: looked for python3, python3.11 to 3.14, python.' \
	    'Install one and put it on the PATH.' >&2; exit 1; fi; \
	echo "Making .venv with $$($$python -V): once, a few minutes"; \
	python=$$($$python -c 'import sys; print(sys.executable)'); \
	rm -rf .venv; \
	if command -v uv >/dev/null && uv venv -q --python "$$python" .venv \
	    && uv pip install --python .venv/bin/python -c constraints.txt -e '.[test]'; then :; \
	else \
	    rm -rf .venv; \
	    "$$python" -m venv .venv || { rm -rf .venv; echo "$$python cannot make an environment: install its venv module" \
	        "(Debian, Ubuntu: apt install python3-venv) or uv." >&2; exit 1; }; \
	    if .venv/bin/python -m pip install -q uv && .venv/bin/uv pip install --python .venv/bin/python \
	        -c constraints.txt -e '.[test]'; then :; \
	    else echo 'Not with uv. Trying pip.'; .venv/bin/python -m pip install -c constraints.txt -e '.[test]'; fi; \
	fi; \
	cat pyproject.toml constraints.txt > $@

# ---- What there is ---------------------------------------------------------------------------------------------------
DIR := results/$(DATASET)
RUN := $(DIR)/k$(K)
FIGURES := clustering resolution classification classes umap programs training

filtered := $(DIR)/filtered.h5ad
# a job for each shard of the cells, if they are asked for
shards := $(if $(SHARDS),$(patsubst %,$(DIR)/sums/%-of-$(SHARDS).npz,$(shell seq -w 0 $$(($(SHARDS) - 1)))))
sums := $(if $(SHARDS),$(DIR)/sums.npz)
models := $(foreach name,base_nmf ae_nmf cae_nmf1 cae_nmf2,$(RUN)/$(name)_k$(K).h5ad)
tables := $(addprefix $(RUN)/,clustering_cell_type.csv clustering_donor_id.csv classification_cell_type.csv \
    classification_donor_id.csv clustering_long.csv classification_long.csv clustering_resolution.csv \
    classification_by_class.csv classification_confusion.csv integration.csv unseen_donors_long.csv unseen_donors_by_class.csv)
umap := $(RUN)/umap.h5ad
# a job for each model and label, if they are asked for: `make scores`
parts := $(foreach label,cell_type donor_id,$(patsubst $(RUN)/%_k$(K).h5ad,$(RUN)/classification_scores/%.$(label).done,$(models)))
study := $(RUN)/conditioning.csv $(RUN)/conditioning_long.csv $(addprefix $(RUN)/figures/conditioning.,pdf png csv)
drawn := $(foreach name,$(FIGURES),$(addprefix $(RUN)/figures/$(name).,pdf png csv))

notebooks := $(addprefix notebooks/,$(addsuffix .py,01_filter 02_train_base_nmf 03_train_ae_nmf 04_train_cae_nmf1 \
    05_train_cae_nmf2 06_benchmarks 07_figures 08_conditioning))

# The modules whose code decides a stage's results; tests/test_packaging.py holds them against the imports.
FILTER_LIB := data results
SUMS_LIB := data training
TRAIN_LIB := data training models results metrics
BENCHMARKS_LIB := data results metrics
FIGURES_LIB := data results figures models
CONDITIONING_LIB := data training models metrics results conditioning figures
lib = $(foreach room,$(1),$(wildcard aenmf_lib/$(room)/*.py))

ifneq ($(origin EXECUTOR),command line)
EXECUTOR := $(shell timeout 5 scontrol ping 2>/dev/null | grep -q ' UP' && echo slurm || echo local)
endif
ifeq ($(filter local slurm,$(EXECUTOR)),)
$(error EXECUTOR='$(EXECUTOR)': expected local or slurm)
endif
ifeq ($(EXECUTOR),slurm)
# On a cluster these send jobs, each of which is this make with EXECUTOR=local, and return at once.
all filter train scores benchmarks figures conditioning: | $(setup)
	@$(call cluster,submit) --goals $@
else
all: filter train benchmarks figures  ## all of the following four: cells to figures, in results/<data set>/
filter: $(filtered) $(DIR)/01_filter.ipynb  ## read, check, filter and normalize the cells
train: $(models) $(patsubst notebooks/%.py,$(RUN)/%.ipynb,$(wordlist 2,5,$(notebooks)))  ## train the four models
benchmarks: $(tables) $(umap) $(RUN)/06_benchmarks.ipynb  ## clustering and classification tables, UMAP
figures: $(drawn) $(RUN)/07_figures.ipynb  ## draw the figures; trains nothing
scores: $(parts)  ## the classification by itself, a job for each model and label: make -j2 scores N_JOBS=1
conditioning: $(study) $(RUN)/08_conditioning.ipynb  ## what conditioning keeps and removes, over its strength, from several starts; not part of all
endif

-include slurm/cluster.mk
given_again = $(foreach name,$(1),$(if $(filter command,$(origin $(name))),$(name)='$(subst $$,$$$$,$($(name)))'))
again = $(call given_again,DATASET K $(OVERRIDES) PYTHON)
quoted = $(subst ','\'',$(1))
cluster = exec "$(PYTHON)" slurm/submit.py $(1) --run $(RUN) --make '$(call quoted,make EXECUTOR=local $(again))' \
    --again '$(call quoted,$(again))' --values '$(call quoted,$(call given_again,$(OVERRIDES)))' \
    --cpu-partition '$(CPU_PARTITION)' --gpu-partition '$(GPU_PARTITION)' --account '$(ACCOUNT)' \
    --gpu-type '$(GPU_TYPE)' --memory-share $(or $(MEMORY_SHARE),1) --cpus $(or $(MOST_CPUS),0) \
    --prelude '$(call quoted,$(PRELUDE))' --sbatch='$(call quoted,$(SBATCH))'
on_cluster = $(if $(filter slurm,$(EXECUTOR)),$(call cluster,$(1)),echo 'make $(1) is about jobs of Slurm, and none \
    answers here (asked with: scontrol ping). Without a cluster make itself says what it does, and make -n what is left.' >&2; exit 1)
status: | $(setup)  ## on a cluster: what is made, queued, running, failed
	@$(call on_cluster,status)
watch: | $(setup)  ## on a cluster: the same again and again, until no job is left
	@$(call on_cluster,watch)
cancel: | $(setup)  ## on a cluster: take back this run's jobs, and no others
	@$(call on_cluster,cancel)

# ---- How it is made --------------------------------------------------------------------------------------------------
# In the targets below '%' stands for the '.' of the ending. That makes them pattern rules, and of those make knows that
# one run gives all targets; of a plain rule with several targets it believes that each takes a run of its own.
run = "$(PYTHON)" -m aenmf_lib.workflow.run
# exec: a signal to make is to end the runner, not a shell that leaves it behind.
execute = exec $(run) execute $< --params $(word 2,$^)

# Looked at every time, but a file is written only when a value in it changed.
# '+', and the look for Python, which may not be there yet: so that `make -n` tells the truth.
values := $(DIR)/params/01_filter.yaml $(patsubst notebooks/%.py,$(RUN)/params/%.yaml,$(wordlist 2,8,$(notebooks)))
$(values): resolved
	+@:
resolved: | $(setup)
	+@if command -v "$(PYTHON)" >/dev/null; then $(run) resolve $(addprefix --params ,$(params)) \
	    --notebooks $(notebooks) --out $(values) $(given); fi

$(simulated): aenmf_lib/data/simulation.py | $(setup)
	"$(PYTHON)" -m aenmf_lib.data.simulation $@

$(DIR)/filtered%h5ad $(DIR)/01_filter%ipynb: \
    notebooks/01_filter.py $(DIR)/params/01_filter.yaml $(cells) $(call lib,$(FILTER_LIB)) | $(setup)
	$(execute) --report $(DIR)/01_filter.ipynb -p out $(filtered)

# $(call shard,NUMBER)
define shard
$(DIR)/sums/$(1)-of-$(SHARDS).npz: $(filtered) $(call lib,$(SUMS_LIB)) | $(setup)
	exec "$(PYTHON)" -m aenmf_lib.training.sharding $$< --shard $(1) $(SHARDS) --out $$@
endef
$(foreach file,$(shards),$(eval $(call shard,$(firstword $(subst -of-, ,$(notdir $(file)))))))

# Of the shards it leaves those alone that it added: another number of them is made again, and added.
$(sums): $(shards)
	exec "$(PYTHON)" -m aenmf_lib.training.sharding $(filtered) --merge $^ --out $@

# $(call train,NOTEBOOK,RESULT,SUMS)
define train
$(RUN)/$(2)_k$(K)%h5ad $(RUN)/$(1)%ipynb: \
    notebooks/$(1).py $(RUN)/params/$(1).yaml $(filtered) $(3) $(call lib,$(TRAIN_LIB)) | $(setup)
	$$(execute) --report $(RUN)/$(1).ipynb -p cells $(filtered) -p out $(RUN)/$(2)_k$(K).h5ad
endef
$(eval $(call train,02_train_base_nmf,base_nmf))
$(eval $(call train,03_train_ae_nmf,ae_nmf,$(sums)))
$(eval $(call train,04_train_cae_nmf1,cae_nmf1,$(sums)))
$(eval $(call train,05_train_cae_nmf2,cae_nmf2,$(sums)))

# $(call part,MODEL,LABEL)
define part
$(RUN)/classification_scores/$(1).$(2).done: $(RUN)/$(1)_k$(K).h5ad $(RUN)/params/06_benchmarks.yaml \
    $(call lib,$(BENCHMARKS_LIB)) | $(setup)
	@mkdir -p $$(@D)
	exec "$(PYTHON)" -m aenmf_lib.workflow.cli $$< --label $(2) --params $$(word 2,$$^) --notebook notebooks/06_benchmarks.py \
	    --store $$(@:.done=.csv) --done $$@
endef
$(foreach label,cell_type donor_id,$(foreach model,base_nmf ae_nmf cae_nmf1 cae_nmf2,$(eval $(call part,$(model),$(label)))))

# With `scores` on the same command line it waits for them; by itself it makes what they have not.
$(tables:.csv=%csv) $(umap:.h5ad=%h5ad) $(RUN)/06_benchmarks%ipynb: \
    notebooks/06_benchmarks.py $(RUN)/params/06_benchmarks.yaml $(models) $(call lib,$(BENCHMARKS_LIB)) \
    | $(setup) $(if $(filter scores,$(MAKECMDGOALS)),$(parts))
	$(execute) --report $(RUN)/06_benchmarks.ipynb -p models $(subst $(space),$(comma),$(models)) -p out_dir $(RUN)

# The date makes the same input give the same bytes.
$(foreach name,$(FIGURES),$(addprefix $(RUN)/figures/$(name)%,pdf png csv)) $(RUN)/07_figures%ipynb: \
    notebooks/07_figures.py $(RUN)/params/07_figures.yaml $(models) $(tables) $(umap) \
    $(call lib,$(FIGURES_LIB)) aenmf_lib/figures/aenmf.mplstyle | $(setup)
	SOURCE_DATE_EPOCH=1767225600 $(execute) --report $(RUN)/07_figures.ipynb -p tables $(RUN) -p out_dir $(RUN)/figures

$(foreach file,$(study),$(basename $(file))%$(patsubst .%,%,$(suffix $(file)))) $(RUN)/08_conditioning%ipynb: \
    notebooks/08_conditioning.py $(RUN)/params/08_conditioning.yaml $(filtered) $(call lib,$(CONDITIONING_LIB)) \
    aenmf_lib/figures/aenmf.mplstyle | $(setup)
	$(execute) --report $(RUN)/08_conditioning.ipynb -p cells $(filtered) -p out_dir $(RUN)

# ---- For those who work on it ----------------------------------------------------------------------------------------
setup: $(setup)  ## make .venv, as every target does that needs it

test: $(setup)  ## run the tests
	"$(PYTHON)" -m pytest -n 2 --dist loadfile

lint: $(setup)  ## check style and form
	"$(PYTHON)" -m ruff check .
	"$(PYTHON)" -m ruff format --check .

format: $(setup)  ## bring the sources into form
	"$(PYTHON)" -m ruff check --fix .
	"$(PYTHON)" -m ruff format .

lab: $(setup)  ## open the notebooks in JupyterLab; on a cluster in a job, with what to type to get there
ifeq ($(EXECUTOR),slurm)
	@$(call cluster,lab)
else
	JUPYTER_PREFER_ENV_PATH=1 JUPYTER_CONFIG_PATH="$(CURDIR)/notebooks/.jupyter" \
	    exec "$(PYTHON)" notebooks/.jupyter/lab.py
endif

clean:  ## remove results/<data set>/ of this DATASET alone, all its ranks
	@echo "Removing $(DIR)"
	@rm -rf "$(DIR)"

help:  ## list this
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))
	@echo '  DATASET: $(basename $(notdir $(wildcard notebooks/params/*.yaml))); or DATA=cells.h5ad. Also: K $(OVERRIDES)'
