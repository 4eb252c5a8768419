# Targets for jobs on a Slurm cluster (slurm/README.md). slurm/cluster.mk describes the cluster.
.PHONY: status watch cancel lab explore

-include slurm/cluster.mk

# $(call slurm,ACTION)
slurm = exec "$(PYTHON)" -Es slurm/submit.py $(1) --run $(RUN) --cpu-partition '$(CPU_PARTITION)' \
    --gpu-partition '$(GPU_PARTITION)' --account '$(ACCOUNT)' --gpu-type '$(GPU_TYPE)' \
    --requests=$(call quoted,$(run) requests) --prelude $(call quoted,$(PRELUDE)) --sbatch=$(call quoted,$(SBATCH)) \
    --variables $(variables)

needs_slurm = $(if $(filter slurm,$(EXECUTOR)),$(call slurm,$(1)),echo "'make $(1)' needs Slurm, but 'scontrol ping' \
    got no answer. Without Slurm, 'make -n all' lists what is still to be done." >&2; exit 1)

status: | $(setup)  ## cluster: show all runs with jobs, and the stages of this run
	@$(call needs_slurm,status)

watch: | $(setup)  ## cluster: show the status every few seconds until no job is left
	@$(call needs_slurm,watch)

cancel: | $(setup)  ## cluster: cancel the jobs of this run only
	@$(call needs_slurm,cancel)

lab: $(setup)  ## open the notebooks in JupyterLab; on a cluster in a job
explore: $(RUN)/09_explore.ipynb  ## open notebook 09 of the run in JupyterLab: maps of embeddings, programs and genes
explore: page := $(RUN)/09_explore.ipynb
lab explore:
ifeq ($(EXECUTOR),slurm)
	@$(call slurm,lab) --page '$(page)'
else
	@JUPYTER_PREFER_ENV_PATH=1 JUPYTER_CONFIG_PATH="$(CURDIR)/notebooks/.jupyter" \
	    exec "$(PYTHON)" notebooks/.jupyter/lab.py $(page)
endif
