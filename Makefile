# Cells in, embeddings, tables and figures out. Targets are the results themselves. Works with GNU make 3.81 and later.

.DEFAULT_GOAL := help
.SUFFIXES:
.PHONY: all check fetch rehearse filter train benchmarks programs figures report scores conditioning projection rank \
    consensus differential project test lint format setup clean help resolved FORCE

VARIABLES := DATASET DATA K MODELS QUICK MIN_CELLS SEED N_STARTS DONOR_KEY CELL_TYPE_KEY GENE_NAME_KEY LAYER FRACTIONAL \
    SAMPLE_CELLS DROP_MISSING KEEP_UNLABELED DROP_EMPTY DROP_LABELS MERGE_LABELS PRIMARY_ONLY MAX_CELLS FOREST SCIB \
    N_JOBS STRENGTH GENE_WEIGHTS DEVICE SHARDS GENE_SETS EXTRA BASELINES FIGURE FORMAT WIDTH COLOR_BY SETTINGS \
    BY CELLS MODEL EXECUTOR PYTHON

empty :=
space := $(empty) $(empty)
comma := ,
quoted = '$(subst ','\'',$(1))'
goals := $(or $(MAKECMDGOALS),help)
# goals that read neither the data nor the variables, and those that do not read the data
development := help test lint format setup
idle := $(development) clean fetch status watch cancel lab explore project report rehearse
this_make := $(MAKE)# make runs recipes that contain $(MAKE) even with -n

# ---- Data set and number of programs ---------------------------------------------------------------------------------
set_outside := $(strip $(foreach name,$(filter-out EXECUTOR PYTHON,$(VARIABLES)),$(if $(findstring environment,\
    $(origin $(name))),$(if $(value $(name)),$(name)))))
pairs := $(foreach name,$(set_outside),$(name)=$(value $(name)))
$(if $(and $(set_outside),$(filter-out $(development),$(goals))),$(error $(pairs): set in the environment, which make \
    does not read. Write the variable after make: make $(goals) $(pairs), or remove it from the environment: \
    unset $(set_outside)))
# Assigned here, so that only the command line sets them, and not the environment.
$(foreach name,DATA SHARDS MODELS QUICK FIGURE FORMAT SETTINGS CELLS MODEL,$(eval $(name) :=))
stem = $(patsubst %.zarr,%,$(patsubst %.h5ad,%,$(notdir $(patsubst %/,%,$(1)))))
DATASET := $(if $(DATA),$(call stem,$(DATA)),demo)
DIR := results/$(DATASET)$(if $(filter true,$(QUICK)),-quick)
params := $(wildcard notebooks/params/$(DATASET).yaml)
# of the data set, or of all: the last line with k
usual_k := $(lastword $(shell sed -n 's/^k: *\([0-9][0-9]*\).*/\1/p' notebooks/defaults.yaml $(params)))
K := $(usual_k)

$(if $(word 2,$(DATA)),$(error DATA='$(DATA)' contains a space, which make cannot handle. Rename the file or make a link \
    to it))
odd := $(shell case $(call quoted,$(DATASET)) in (''|[._-]*|*[!A-Za-z0-9._-]*) echo odd;; esac)
$(if $(odd),$(error DATASET='$(DATASET)' cannot name a folder. Use letters, digits, '.', '_' and '-', for example: \
    make $(goals) DATA=$(or $(DATA),cells.h5ad) DATASET=cells))
$(if $(params)$(DATA)$(wildcard $(DIR))$(filter clean,$(goals)),,$(error Unknown data set '$(DATASET)'. Available: \
    $(basename $(notdir $(wildcard notebooks/params/*.yaml))). For your own cells: make all DATA=cells.h5ad))
# K is a list only for `rank`, whose results belong to the data set and not to one number of programs.
of_rank := $(filter rank $(DIR)/rank.csv $(DIR)/figures/figS2_rank.% $(DIR)/12_rank.ipynb,$(goals))
of_rank := $(strip $(if $(filter-out $(of_rank) $(DIR)/filtered.h5ad $(DIR)/cohort.csv $(DIR)/01_filter.ipynb status watch cancel,\
    $(goals)),,$(of_rank)$(word 2,$(subst $(comma), ,$(K)))))
k := $(if $(of_rank),$(usual_k),$(K))
ranks := $(if $(of_rank),$(if $(findstring command,$(origin K)),$(subst $(comma), ,$(K))))
odd := $(foreach number,$(or $(ranks),$(k),none),$(shell case $(call quoted,$(number)) in (0*|*[!0-9]*) echo odd;; esac))
$(if $(strip $(odd) $(if $(ranks),,$(word 2,$(k)))),$(error K='$(K)': expected $(if $(ranks),numbers of \
    programs$(comma) such as K="5 10 20",the number of programs$(comma) such as K=20$(if $(word 2,$(K)),. To compare \
    several numbers: make rank K="$(K)"))))

# the value of a name in a YAML file: with quotes, or without quotes and comment
value_of = $(shell sed -n -e "s/^$(1): *\"\(.*\)\".*/\1/p;t" -e "s/^$(1): *'\(.*\)'.*/\1/p;t" \
    -e "s/^$(1): *\(.*[^ ]\) *\#.*/\1/p;t" -e "s/^$(1): *\(.*[^ ]\) *$$/\1/p" $(2) /dev/null)
data := $(or $(DATA),$(call value_of,data,$(params)),$(call value_of,path,$(wildcard $(DIR)/input.yaml)))
cells := $(filter $(patsubst %,data/%.h5ad,demo demo_none demo_weak demo_confounded demo_many \
    demo_many_full),$(data))# made by simulation
gone := $(if $(cells),,$(shell test -e $(call quoted,$(data)) || echo gone))
# A missing input is downloaded if the parameters file has a block 'fetch', unless its filtered cells exist.
fetchable := $(if $(and $(gone),$(params)),$(shell grep -l '^fetch:' $(params)))
fetched := $(if $(fetchable),$(if $(DATA)$(if $(filter fetch,$(goals)),,$(wildcard $(DIR)/filtered.h5ad)),,$(data)))
gone := $(if $(fetched),,$(gone))

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
RUN := $(DIR)/k$(k)
FIGURES := fig1_benchmark fig2_embeddings fig3_programs fig4_loadings fig5_matching fig6_donors figS1_training \
    figS3_cohort figS4_classes figS5_resolution
ALL_MODELS := Base_NMF AE_NMF CAE_NMF1 CAE_NMF2
OPTIONAL_MODELS := Untied_AE_NMF# trained only if MODELS names it or is 'all'
lower = $(strip $(shell printf %s $(call quoted,$(1)) | tr 'A-Z,' 'a-z '))
all_models := $(call lower,$(ALL_MODELS) $(OPTIONAL_MODELS))
chosen := $(patsubst all,$(all_models),$(call lower,$(or $(MODELS),$(ALL_MODELS))))
$(if $(filter-out $(all_models),$(chosen))$(if $(chosen),,none),$(error MODELS='$(MODELS)': expected some of \
    $(ALL_MODELS) $(OPTIONAL_MODELS), such as MODELS="Base_NMF AE_NMF", or MODELS=all))
MODEL_FILES := $(filter $(chosen),$(all_models))

notebooks := $(sort $(wildcard notebooks/[0-9][0-9]_*.py))
filtered := $(DIR)/filtered.h5ad
cohort := $(DIR)/cohort.csv
input := $(DIR)/input.yaml
# SHARDS: one job for each part of the cells, and one that adds up their sums. CAE_NMF2 needs sums per donor (sums.npz). The
# other models also use them if they exist.
by_donor := $(if $(filter cae_nmf2,$(MODEL_FILES))$(wildcard $(DIR)/sums.npz),--by-donor)
sums := $(if $(SHARDS),$(DIR)/sums$(if $(by_donor),,_pooled).npz)
shards := $(if $(SHARDS),$(patsubst %,$(sums:.npz=)/%-of-$(SHARDS).npz,$(shell seq -w 0 $$(($(SHARDS) - 1)))))
models := $(patsubst %,$(RUN)/%_k$(k).h5ad,$(MODEL_FILES))
trained := $(foreach model,$(MODEL_FILES),$(patsubst notebooks/%.py,$(RUN)/%.ipynb,$(wildcard notebooks/??_train_$(model).py)))
tables := $(patsubst %,$(RUN)/%.csv,clustering_cell_type clustering_donor_id classification_cell_type \
    classification_donor_id clustering_long classification_long clustering_resolution clustering_best \
    classification_by_class classification_confusion integration unseen_donors_long unseen_donors_by_class)
umap := $(RUN)/umap.h5ad
programs := $(foreach model,$(MODEL_FILES),$(RUN)/programs_$(model).csv $(RUN)/program_cards_$(model).csv) \
    $(patsubst %,$(RUN)/%.csv,usage_by_type program_matches gene_set_enrichment donor_genes donor_share)
# $(call drawn,FOLDER,FIGURES,FORMATS)
drawn = $(foreach name,$(2),$(patsubst %,$(1)/figures/$(name).%,$(sort $(3) csv txt)))
# the formats in the last of some YAML files that sets them, as [pdf, svg]; none if they are in lines of their own
formats = $(shell sed -n '/^ *formats:/h; $${g; s/.*formats://; s/\#.*//; s/[^a-z]/ /g; p;}' $(1) 2>/dev/null)
usual_formats := $(call formats,figures/settings.yaml)
settings := $(or $(SETTINGS),$(call value_of,settings,$(params)))
figures := $(call drawn,$(RUN),$(FIGURES),$(or $(subst $(comma), ,$(FORMAT)),$(call formats,figures/settings.yaml \
    $(if $(settings),$(call quoted,$(settings))) $(params)))) $(call drawn,$(RUN),table1,md tex)

# the run of the model is part of the name: demo_k12_ae_nmf_k12.h5ad
projected := results/$(call stem,$(CELLS))/projected/$(if $(filter results/%,$(MODEL)),$(subst /,_,$(MODEL:results/%=%)),$(notdir $(MODEL)))

# Stages that are not part of `all`, and the files of each. The first four read only the filtered cells.
conditioning := $(RUN)/conditioning.csv $(RUN)/conditioning_long.csv $(call drawn,$(RUN),conditioning,$(usual_formats))
projection := $(RUN)/projection.csv
rank := $(DIR)/rank.csv $(call drawn,$(DIR),figS2_rank,$(usual_formats))
consensus := $(RUN)/consensus.csv $(RUN)/ae_nmf_consensus_k$(k).h5ad
differential := $(RUN)/differential_usage.csv $(call drawn,$(RUN),differential,$(usual_formats))
on_request := conditioning/08_conditioning projection/11_project rank/12_rank consensus/13_consensus \
    differential/14_differential
# $(call goals_of,TARGET/NOTEBOOK,...): the goals that are these targets or files of these stages
goals_of = $(filter $(foreach stage,$(1),$(patsubst %/,%,$(dir $(stage))) $($(patsubst %/,%,$(dir $(stage)))) \
    %/$(notdir $(stage)).ipynb),$(goals))
# Values are written for the notebooks that the goals need: a value for a stage on request changes no other result.
opt_out := $(if $(filter untied_ae_nmf,$(MODEL_FILES)),,15_%)
own := $(foreach stage,$(on_request),$(if $(call goals_of,$(stage)),$(notdir $(stage))))
of_cells := filter $(filtered) $(cohort) $(DIR)/01_filter.ipynb $(call goals_of,$(wordlist 1,4,$(on_request)))
own += $(if $(filter-out $(of_cells),$(goals)),$(filter-out 01_% 09_% $(opt_out) $(notdir $(on_request)),$(patsubst \
    notebooks/%.py,%,$(notebooks))))
values := $(patsubst %,$(DIR)/params/%.yaml,01_filter $(filter 12_rank,$(own))) \
    $(patsubst %,$(RUN)/params/%.yaml,$(filter-out 12_rank,$(own)))

# ---- Check the command line ------------------------------------------------------------------------------------------
# Python checks names and values before anything runs. Until .venv exists this is the python3 of the system.
variables = $(foreach name,$(filter-out -%,$(.VARIABLES)),$(if $(filter command,$(origin $(name))),\
    $(call quoted,$(name)=$($(name)))))
checked = --notebooks $(notebooks) --valid $(VARIABLES) --goals $(MAKECMDGOALS) --variables $(variables)
ifneq ($(filter-out 'PYTHON=% 'DATASET=% 'K=% 'EXECUTOR=%,$(variables))$(and $(gone),$(filter-out $(idle),$(goals))),)
wrong := $(shell python=$$(command -v "$(PYTHON)" || command -v python3) && \
    "$$python" -Es -m aenmf_lib resolve $(checked) $(if $(filter-out $(idle),$(goals)),\
    $(if $(cells)$(fetched),,--data $(call quoted,$(data)))) --folder $(DIR) 2>&1 >/dev/null | sed -n 's/^error: \(.*\)\.$$/\1/p')
$(if $(wrong),$(error $(wrong)$(if $(fetchable),. To download the cells: make fetch DATASET=$(DATASET))))
endif
# This resolves the values of the notebooks and checks the input before the first stage.
listed = $(subst $(space),$(comma),$(strip $(1)))
resolve = $(run) $(1) $(checked) $(addprefix --params ,$(params)) --data $(call quoted,$(data)) --folder $(DIR) \
    --run $(RUN) --models $(MODEL_FILES) --out $(values) $(digests) $(if $(filter slurm,$(EXECUTOR)),--slurm) \
    -p k $(k) $(if $(ranks),-p ranks $(call listed,$(ranks))) -p model_paths $(call listed,$(models)) \
    $(if $(SHARDS),-p sums_path $(sums))

# the variables that choose the run, for a command that is suggested
same := $(foreach name,DATASET DATA K QUICK,$(if $(filter command,$(origin $(name))),$(name)=$($(name))))

# ---- Public targets --------------------------------------------------------------------------------------------------
ifneq ($(origin EXECUTOR),command line)
EXECUTOR := $(shell timeout 5 scontrol ping 2>/dev/null | grep -q ' UP' && echo slurm || echo local)
endif
$(if $(filter local slurm,$(EXECUTOR)),,$(error EXECUTOR='$(EXECUTOR)': expected local or slurm))
# The classification has parts: one file per model, label and seed. The command `jobs` prints the parts of this call, such as
# classification_scores/cell_type.42. Without the goal `scores`, 06 computes these scores itself.
ifneq ($(and $(filter local,$(EXECUTOR)),$(filter scores,$(goals))),)
parts := $(if $(shell command -v "$(PYTHON)"),$(shell $(call resolve,jobs) || echo stop),$(error There is no Python \
    environment yet. Type 'make setup' first))
$(if $(filter stop,$(parts)),$(error The values of the notebooks are not valid. Correct the error above))
scores := $(foreach part,$(parts),$(patsubst %,$(RUN)/$(dir $(part))%.$(notdir $(part)).done,$(MODEL_FILES)))
endif
ifeq ($(EXECUTOR),slurm)
# On a cluster these submit jobs, each of which is make with EXECUTOR=local, and return immediately.
all filter train scores benchmarks programs $(if $(FIGURE),,figures) $(patsubst %/,%,$(dir $(on_request))): | \
    $(setup) $(cells) $(fetched)
	@$(call slurm,submit) --resolve=$(call quoted,$(call resolve,resolve)) \
	    --requests=$(call quoted,$(call resolve,requests)) --goals $@
project: | $(setup)
	@$(call slurm,submit) --goals $@
else
all: filter train benchmarks programs figures  ## make everything down to 'figures'; writes results/<data set>/
filter: $(filtered) $(cohort) $(DIR)/01_filter.ipynb  ## read, check, filter and normalize the cells
train: $(models) $(trained)  ## train the models
benchmarks: $(tables) $(umap) $(RUN)/06_benchmarks.ipynb  ## clustering and classification tables, UMAP
programs: $(programs) $(RUN)/10_programs.ipynb  ## genes and cell types of each program; GENE_SETS=sets.gmt
figures: $(if $(FIGURE),,$(figures) $(RUN)/07_figures.ipynb)  ## draw the figures; only one: FIGURE=fig2 FORMAT=svg
scores: $(scores)  ## classification in one job per model, label and seed: make -j2 scores N_JOBS=1
conditioning: $(conditioning) $(RUN)/08_conditioning.ipynb  ## study of conditioning; from here on not part of all
projection: $(projection) $(RUN)/11_project.ipynb  ## train without some donors, and project their cells
rank: $(rank) $(DIR)/12_rank.ipynb  ## compare numbers of programs: K="5 10 20"
consensus: $(consensus) $(RUN)/13_consensus.ipynb  ## programs that recur over starts and donors
differential: $(differential) $(RUN)/14_differential.ipynb  ## usages that differ between groups of donors: BY=condition
project: $(projected)  ## project new cells: CELLS=new.h5ad MODEL=results/.../cae_nmf1_k20.h5ad
endif
ifneq ($(FIGURE),)
figures: | $(setup)
	@$(call resolve,draw)
else ifeq ($(EXECUTOR),local)
figures:
	@echo $(call quoted,$(strip Figures: $(RUN)/figures/. For a website of the run: make report $(same)))
endif
# It packs what exists, and waits only for goals of the same call.
report: | $(setup) $(if $(filter local,$(EXECUTOR)),$(filter-out report $(idle),$(goals)))  ## pack a run as a website
	@exec $(run) report $(RUN) --out $(RUN)/report
check: | $(setup) $(cells) $(fetched)  ## report the cells that would be read, all problems, and the cost of each stage
	@$(call resolve,preflight)
fetch: | $(setup) $(fetched)  ## download or check the cells of a data set on CELLxGENE: DATASET=tabula_sapiens_immune
	@$(if $(fetched),:,exec $(fetch))
rehearse: | $(setup)  ## run all stages on simulated cells, and estimate the cost of the atlas: CELLS=100000
	@exec $(run) rehearse $(checked) --make $(call quoted,$(this_make)) $(if $(filter slurm,$(EXECUTOR)),--slurm)
include slurm/slurm.mk

# ---- Stages ----------------------------------------------------------------------------------------------------------
# A stage depends on the content of its notebook and of the packages that it uses, not on the dates of these files.
digest = $(patsubst %,$(DIR)/digests/%.sha256,$(subst /,.,$(1)))
digests :=
# '%' replaces the last '.': only for a pattern rule does make 3.81 know that one run makes all targets.
pattern = $(foreach file,$(1),$(basename $(file))%$(patsubst .%,%,$(suffix $(file))))

folder_of = $(if $(filter 01_% 12_%,$(1)),$(DIR),$(RUN))
# $(call stage,NOTEBOOK,RESULTS,INPUTS,PACKAGES,ARGUMENTS,AFTER)
# exec: a signal to make reaches the runner, not a shell. All results are written under another name first, so a failed or
# interrupted stage leaves the earlier ones, which make must not delete. Without its report the stage runs again.
define stage
.PRECIOUS: $(2) $(folder_of)/$(1).ipynb
digests := $(sort $(digests) $(call digest,$(1) $(4)))
$(call pattern,$(2) $(folder_of)/$(1).ipynb): $(folder_of)/params/$(1).yaml $(3) $(call digest,$(1) $(4)) | $(setup) $(6)
	exec $$(run) execute notebooks/$(1).py --params $$< --report $(folder_of)/$(1).ipynb $(5)
endef

training := data training models results
analysis := data training models results metrics programs
from_cells := -p cells_path $(filtered) -p out
fitted := $(models) $(trained)
# the AE-NMF from which models 1 and 2 start. If AE_NMF is not in MODELS, they fit it themselves. The untied model always
# fits its own, because its gene weights are different
ae_nmf := $(if $(filter ae_nmf,$(MODEL_FILES)),$(RUN)/ae_nmf_k$(k).h5ad)
# $(call train,NOTEBOOK,MODEL,SUMS,AE_NMF)
train = $(call stage,$(1),$(RUN)/$(2)_k$(k).h5ad,$(filtered) $(3) $(4),$(training),$(from_cells) \
    $(RUN)/$(2)_k$(k).h5ad $(if $(4),-p ae_nmf_path $(4)))

# If the input no longer exists, the filter cannot run: the existing filtered cells are used.
ifeq ($(gone),)
$(eval $(call stage,01_filter,$(filtered) $(cohort),$(input),data results,-p out $(filtered) -p out_dir $(DIR)))
endif
$(eval $(call train,02_train_base_nmf,base_nmf))
$(eval $(call train,03_train_ae_nmf,ae_nmf,$(sums)))
$(eval $(call train,04_train_cae_nmf1,cae_nmf1,$(sums),$(ae_nmf)))
$(eval $(call train,05_train_cae_nmf2,cae_nmf2,$(sums),$(ae_nmf)))
$(if $(opt_out),,$(eval $(call train,15_train_untied_ae_nmf,untied_ae_nmf,$(sums))))
$(eval $(call stage,06_benchmarks,$(tables) $(umap),$(fitted),data training results metrics extra,$(from_cells)_dir $(RUN),\
    $(scores)))
$(eval $(call stage,10_programs,$(programs),$(fitted),$(analysis) gene_sets,-p out_dir $(RUN)))
$(eval $(call stage,07_figures,$(figures),$(fitted) $(cohort) $(tables) $(umap) $(RUN)/06_benchmarks.ipynb $(programs)\
    $(RUN)/10_programs.ipynb,data results figures settings,-p tables_dir $(RUN) -p out_dir $(RUN)/figures))
$(eval $(call stage,08_conditioning,$(conditioning),$(filtered),$(analysis) figures conditioning,$(from_cells)_dir $(RUN)))
$(eval $(call stage,11_project,$(projection),$(filtered),$(analysis),$(from_cells)_dir $(RUN)))
$(eval $(call stage,12_rank,$(rank),$(filtered),$(analysis) figures,$(from_cells)_dir $(DIR)))
$(eval $(call stage,13_consensus,$(consensus),$(filtered),$(analysis),$(from_cells) $(lastword $(consensus)) -p out_dir $(RUN)))
$(eval $(call stage,14_differential,$(differential),$(fitted),$(analysis) figures,-p out_dir $(RUN)))

# Every call resolves the values and checks the input, but writes a file only when its content has changed.
# 'make -n' writes nothing: 'resolve --dry-run' prints the files that would change.
flags := $(firstword -$(MAKEFLAGS))
dry := $(if $(findstring =,$(flags)),,$(findstring n,$(filter-out --%,$(flags))))
$(values) $(input) $(digests): $(if $(dry),,resolved)
	$(if $(dry),,@:)
$(input): | $(cells) $(fetched)
resolved: | $(setup) $(cells) $(fetched)
	@$(call resolve,resolve)
ifneq ($(and $(dry),$(filter-out $(idle),$(goals)),$(shell command -v "$(PYTHON)")),)
ifndef AENMF_KEEP_VALUES
changed := $(shell $(call resolve,resolve) --dry-run || echo stop)
$(if $(filter stop,$(changed)),$(error The values of the notebooks are not valid. Correct the error above))
$(changed): FORCE
endif
endif

$(cells): aenmf_lib/data/simulation.py | $(setup)
	$(run) simulate $@

fetch = $(run) fetch --data $(call quoted,$(data)) $(addprefix --params ,$(params))
.PRECIOUS: $(fetched)
$(fetched): | $(setup)
	exec $(fetch)

device := $(or $(DEVICE),$(lastword $(call value_of,device,notebooks/defaults.yaml $(params))),cpu)
$(shards): $(filtered) $(call digest,data training) | $(setup)
	exec $(run) sum $< --shard $(firstword $(subst -of-, ,$(@F))) $(SHARDS) --out $@ $(by_donor) --device $(device)

$(sums): $(shards)
	exec $(run) merge $(filtered) $^ --out $@

# $(call score,MODEL,FOLDER,LABEL,OPTIONS): 06 reads these tables in addition to its own, FOLDER.csv
define score
$(RUN)/$(2)/$(1).$(3).%.done: $(RUN)/$(1)_k$(k).h5ad $(RUN)/params/06_benchmarks.yaml \
    $(call digest,data training results metrics) | $(setup)
	@mkdir -p $$(@D)
	exec $$(run) score $$< --label $(3) --seed $$* $(4) --params $$(word 2,$$^) --notebook notebooks/06_benchmarks.py \
	    --cache $$(@:.done=.csv) --done $$@
endef
$(foreach model,$(MODEL_FILES),\
    $(foreach label,cell_type donor_id,$(eval $(call score,$(model),classification_scores,$(label))))\
    $(eval $(call score,$(model),unseen_donors_scores,cell_type,--held-out donor_id)))

# ---- New cells -------------------------------------------------------------------------------------------------------
ifneq ($(filter project $(projected),$(goals)),)
found := $(firstword $(wildcard results/*/k*/*ae_nmf*_k*.h5ad) results/demo/k12/ae_nmf_k12.h5ad)
$(foreach name,CELLS MODEL,$(if $(and $(wildcard $(firstword $($(name)))),$(if $(word 2,$($(name))),,one)),,\
    $(error $(name)='$($(name))': expected an existing file without spaces in its name. Example: \
    make project CELLS=new.h5ad MODEL=$(found))))
endif
options = $(foreach name,DONOR_KEY CELL_TYPE_KEY LAYER GENE_NAME_KEY,$(if $($(name)),--$(call lower,$(name)) \
    $(call quoted,$($(name))))) $(if $(filter true,$(FRACTIONAL)),--fractional)
# Always computed. The files are prerequisites only for `status`, so that the model of a run is never trained again.
$(projected): $(if $(AENMF_KEEP_VALUES),$(CELLS) $(MODEL),FORCE) | $(setup)
	exec $(run) project $(call quoted,$(CELLS)) $(call quoted,$(MODEL)) --out $@ $(options)

# made once: afterwards it belongs to the user, who may change it
$(RUN)/09_explore.ipynb: | $(setup)
	@$(run) copy notebooks/09_explore.py --out $@ -p model_paths $(call listed,$(models)) -p tables_dir $(RUN) \
	    -p cells_path $(filtered)

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
