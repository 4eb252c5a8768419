"""The command line ``python -m aenmf_lib COMMAND``. Each command imports its modules only when it runs."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from aenmf_lib.workflow import crate, errors, inputs, parameters, plan, run

_OF_CELLS = ("donor_key", "cell_type_key", "layer", "gene_name_key")  # options of `project`


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command. For an error that the user can correct, print one message and exit with status 1."""
    options = _parser().parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        options.command(options)
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception as error:
        if not isinstance(error, ValueError | run.RunError) and not errors.is_known(error):
            raise
        sys.exit(f"error: {error if isinstance(error, run.RunError) else errors.explain(error)}")


def _resolve(options: argparse.Namespace) -> None:
    """Check make's variables, the values for each notebook and the input, and write the values."""
    if not options.out:  # before the environment exists
        parameters.parse_variables(options.variables, options.valid, options.notebooks, options.goals)
        if options.data is not None:
            inputs.require(options.data, options.folder, options.goals)
        return
    _plan(options).update(options.goals, dry_run=options.dry_run)


def _preflight(options: argparse.Namespace) -> None:
    """Report what make would do with the cells, everything that is wrong, and the cost of each stage."""
    prepared = _plan(options)
    inputs.require(prepared.values["01_filter"].get("data", ""), options.folder, ["check"])
    report = prepared.examine()
    print(report.text)
    if report.errors:
        sys.exit("\n".join(f"error: {error}" for error in report.errors))


def _draw(options: argparse.Namespace) -> None:
    """Draw one figure of a run again, with the values that notebook 07 would get."""
    prepared = _plan(options)
    values = prepared.values["07_figures"]
    from aenmf_lib import figures

    look = {option: values[option] for option in ("width", "formats") if option in values}
    settings = figures.read_settings(values.get("settings"), **look)
    tables = figures.RunTables(options.run, values["model_paths"], values.get("color_by", ()))
    fig = figures.draw(prepared.variables["FIGURE"], tables, settings)
    figures.save(fig, (options.folder if fig.name == "figS2_rank" else options.run) / "figures")
    crate.update(options.folder)
    if fig.name in figures.FIGURES:
        prepared.compare_look(fig.name, parameters.resolve(options.notebooks, options.params)["07_figures"])


def _rehearse(options: argparse.Namespace) -> None:
    """Run all stages on a simulated stand-in for the atlas, and print their cost and the estimate for the atlas."""
    from aenmf_lib.workflow import rehearsal

    parameters.parse_variables(options.variables, options.valid, options.notebooks, options.goals)
    typed = dict(word.split("=", 1) for word in options.variables)
    made = rehearsal.Rehearsal.from_variables(typed, options.notebooks, options.valid)
    rehearsal.rehearse(made, options.make, slurm=options.slurm)


def _plan(options: argparse.Namespace) -> plan.Plan:
    """Return the values of all notebooks for this call of make."""
    given = parameters.parse_variables(options.variables, options.valid, options.notebooks, options.goals)
    typed = dict(word.split("=", 1) for word in options.variables)
    variables = {name: typed[name] for name in options.valid if name in typed.keys() - {"PYTHON", "EXECUTOR"}}
    overrides, quick = [*options.overrides, *given], variables.get("QUICK") == "true"
    values = parameters.resolve(options.notebooks, options.params, overrides, quick=quick)
    if options.params and "K" not in typed:
        given_k, read_k = parameters.read_yaml(options.params).get("k"), dict(options.overrides).get("k")
        if None not in (given_k, read_k) and str(given_k) != read_k:
            found = f"{options.params} sets k to {given_k!r}, but make reads {read_k}"
            raise parameters.ParameterError(f"{found}. Write it in a line of its own, such as 'k: 20'.")
    if options.data and "data" in parameters.declared(options.notebooks[0]):
        values[options.notebooks[0].stem].setdefault("data", options.data)
    files = [file for file in options.out if file.suffix == ".yaml"]
    for file in files:
        parameters.require_known(file.stem, values, f"--out {file}", "notebook")
    models = [name.upper().replace("BASE", "Base").replace("UNTIED", "Untied") for name in options.models]
    digests = [file for file in options.out if file not in files]
    return plan.Plan(
        values, options.notebooks, files, digests, options.folder, options.run, models, variables, options.slurm
    )


def _execute(options: argparse.Namespace) -> None:
    """Run one notebook."""
    values = parameters.resolve([options.notebook], options.params, options.overrides)
    run.execute(options.notebook, values[options.notebook.stem], options.report)


def _requests(options: argparse.Namespace) -> None:
    """Print as JSON what a job of each stage requests. `--cells` is the file of filtered cells, if it exists."""
    import json

    from aenmf_lib.workflow import cluster
    from aenmf_lib.workflow.costs import Speed

    size, values, models, speed = None, {}, (), None
    if options.notebooks:
        prepared = _plan(options)
        models = prepared.models
        values = {path.stem: parameters.defaults(path) | prepared.values[path.stem] for path in options.notebooks}
        size = cluster.measured_size(options.cells, int(values["03_train_ae_nmf"]["k"])) if options.cells else None
        size, speed = size or prepared.examine().size, Speed.measure()
    table = cluster.requests(size, values, models=models, speed=speed)
    print(json.dumps({"size": size and [size.n_cells, size.n_genes], "stages": table.to_dict("index")}))


def _jobs(options: argparse.Namespace) -> None:
    """Print FOLDER/LABEL.SEED for each part of the classification. Each part is one job per model."""
    notebook = next(path for path in options.notebooks if path.stem == "06_benchmarks")
    values = parameters.defaults(notebook) | _plan(options).values[notebook.stem]
    seeds = {
        "classification_scores/cell_type": "classification_seeds",
        "classification_scores/donor_id": "classification_seeds",
        "unseen_donors_scores/cell_type": "unseen_seeds",
    }
    print(*(f"{part}.{seed}" for part, name in seeds.items() for seed in values[name]))


def _score(options: argparse.Namespace) -> None:
    """Compute the scores of one model, label and seed as notebook 06 does, which reads these scores later."""
    from functools import partial

    from aenmf_lib.metrics.classification import cross_validate
    from aenmf_lib.metrics.classifiers import KNN, LOGISTIC
    from aenmf_lib.metrics.splits import Splits
    from aenmf_lib.results import read_embeddings
    from aenmf_lib.results.files import read
    from aenmf_lib.results.schema import skip_reason

    if reason := skip_reason(read(options.model).uns):
        logging.info("%s: skipped: %s", options.model, reason)
        options.done.touch()
        return
    own = parameters.resolve([options.notebook], options.params)[options.notebook.stem]
    values = parameters.defaults(options.notebook) | own
    seeds = values["unseen_seeds" if options.held_out else "classification_seeds"]
    if options.seed not in seeds:
        raise ValueError(f"--seed {options.seed} is not a seed of this run. Expected one of {seeds}. Pass one of them.")
    embeddings = read_embeddings([options.model])
    score = partial(
        cross_validate,
        embeddings.H,
        embeddings.obs,
        labels=[options.label],
        splits=Splits(max_cells=values["max_cells"], subset_seed=values["seed"], held_out=options.held_out),
        n_jobs=values["n_jobs"],
        cache=options.cache,
    )
    on_gpu = values["device"] != "cpu"  # then notebook 06, which has the GPU, computes all but the forests
    score(classifiers=[*[LOGISTIC][on_gpu:], values["forest"]], seeds=[options.seed])
    if options.seed == seeds[0] and not on_gpu:  # one search finds the neighbors for all seeds
        score(classifiers=[KNN], seeds=seeds)
    options.done.touch()


def _sum(options: argparse.Namespace) -> None:
    """Sum over one shard of the cells."""
    from aenmf_lib.training.sharding import sum_shard

    sum_shard(options.cells, *options.shard, options.out, by_donor=options.by_donor, device=options.device)


def _merge(options: argparse.Namespace) -> None:
    """Add up the sums over all shards."""
    from aenmf_lib.training.sharding import merge_shards

    merge_shards(options.shards, options.cells, options.out)


def _project(options: argparse.Namespace) -> None:
    """Compute the usages of new cells with the programs of a results file."""
    from aenmf_lib.programs.projection import project_file

    settings = {name: getattr(options, name) for name in _OF_CELLS if getattr(options, name)}
    project_file(options.cells, options.model, options.out, fractional=options.fractional, **settings)


def _copy(options: argparse.Namespace) -> None:
    """Write a notebook with the values of a run, to be opened in JupyterLab."""
    import jupytext
    import papermill

    values = parameters.resolve([options.notebook], overrides=options.overrides)[options.notebook.stem]
    options.out.parent.mkdir(parents=True, exist_ok=True)
    part = options.out.with_suffix(".new.ipynb")
    source = jupytext.read(options.notebook)
    source.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    jupytext.write(source, part)
    logging.getLogger("papermill").setLevel(logging.WARNING)
    settings = {"kernel_name": "python3", "language": "python", "prepare_only": True, "progress_bar": False}
    papermill.execute_notebook(str(part), str(part), values, **settings)
    part.replace(options.out)


def _report(options: argparse.Namespace) -> None:
    """Write the report of a run, a site that opens without a server."""
    from aenmf_lib.workflow import report, site

    index = site.build(options.run, options.out)
    text = "wrote %s (%.1f MB). Open it in a browser; to send the report, compress its folder."
    logging.info(text, index, report.size_on_disk(index.parent) / 1e6)


def _fetch(options: argparse.Namespace) -> None:
    """Download the cells of a data set, or check the existing file."""
    from aenmf_lib.workflow.fetch import fetch

    fetch(options.data, options.params)


def _simulate(options: argparse.Namespace) -> None:
    """Write simulated cells. The file name selects the scenario."""
    from aenmf_lib.data.simulation import write_demo

    write_demo(options.path)


def _stand_in(options: argparse.Namespace) -> None:
    """Write simulated cells with the shape and the schema of an atlas."""
    from aenmf_lib.data.stand_in import StandIn
    from aenmf_lib.workflow.report import size_on_disk

    given = {name: value for name, value in vars(options).items() if value is not None}
    StandIn(**{name: value for name, value in given.items() if name not in ("path", "command")}).write(options.path)
    size = size_on_disk(options.path)
    logging.info("wrote %s: %s simulated cells, %.1f GB", options.path, f"{options.cells:,}", size / 1e9)


def _check(options: argparse.Namespace) -> None:
    """Check that results files have the published keys and valid values."""
    from aenmf_lib.results import check

    faults = {path: check(path) for path in options.files}
    for path, found in faults.items():
        print(f"{path}: {'; '.join(found) or 'ok'}")
    sys.exit(any(faults.values()))


def _compile(options: argparse.Namespace) -> None:
    """Compile the numerical kernels, which takes about a minute once."""
    from aenmf_lib.data import one_pass
    from aenmf_lib.training import coordinate_descent

    for module in (one_pass, coordinate_descent):
        module.compile_kernels()


def _parser() -> argparse.ArgumentParser:
    """Return the parser of all commands."""
    required, words = {"required": True}, {"nargs": "*", "default": []}
    file, files = {"type": Path}, {"type": Path, "nargs": "+"}
    override = {"dest": "overrides", "nargs": 2, "action": "append", "default": [], "metavar": ("NAME", "VALUE")}
    flag = {"action": "store_true"}
    of_make = (
        {"--notebooks": files | required, "--params": file, "-p": override, "--out": files | {"default": []}}
        | {"--variables": words, "--valid": words, "--goals": words, "--models": words, "--slurm": flag}
        | {"--data": {}, "--folder": file | {"default": Path()}, "--run": file | {"default": Path()}}
    )
    arguments = {
        _resolve: of_make | {"--dry-run": flag},
        _preflight: of_make,
        _draw: of_make,
        _rehearse: of_make | {"--make": required},
        _execute: {"notebook": file, "--params": file, "-p": override, "--report": file | required},
        _jobs: of_make,
        _requests: of_make | {"--notebooks": files | {"default": []}, "--cells": file},
        _score: {"model": file, "--label": required, "--seed": required | {"type": int}, "--held-out": {"default": ""}}
        | {"--notebook": file | required, "--params": file, "--cache": file | required, "--done": file | required},
        _sum: {"cells": file, "--shard": required | {"type": int, "nargs": 2, "metavar": ("I", "N")}}
        | {"--out": file | required, "--by-donor": flag, "--device": {"default": "cpu"}},
        _merge: {"cells": file, "shards": files, "--out": file | required},
        _project: {"cells": file, "model": file, "--out": file | required, "--fractional": flag}
        | {f"--{name}": {"default": ""} for name in _OF_CELLS},
        _copy: {"notebook": file, "-p": override, "--out": file | required},
        _report: {"run": file, "--out": file | required},
        _fetch: {"--data": required, "--params": file},
        _simulate: {"path": file},
        _stand_in: {"path": file, "--cells": required | {"type": int}, "--compression": {}, "--seed": {"type": int}}
        | {f"--{name}": {"type": int} for name in ("genes", "nonzeros", "types", "donors")}
        | {"--compact": flag, "--raw-only": flag},
        _check: {"files": files},
        _compile: {},
    }
    parser = argparse.ArgumentParser(prog="python -m aenmf_lib", description="Commands used by the Makefile.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for command, settings in arguments.items():
        name = command.__name__[1:].replace("_", "-")
        sub = commands.add_parser(name, help=command.__doc__, description=command.__doc__)
        sub.set_defaults(command=command)
        for name, options in settings.items():
            sub.add_argument(name, **options)
    return parser
