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
    models = [name.upper().replace("BASE", "Base") for name in options.models]
    digests = [file for file in options.out if file not in files]
    return plan.Plan(
        values, options.notebooks, files, digests, options.folder, options.run, models, variables, options.slurm
    )


def _execute(options: argparse.Namespace) -> None:
    """Run one notebook."""
    values = parameters.resolve([options.notebook], options.params, options.overrides)
    run.execute(options.notebook, values[options.notebook.stem], options.report)


def _score(options: argparse.Namespace) -> None:
    """Classify one label of one model with the parameters of notebook 06, which reads these scores later."""
    from aenmf_lib.metrics.classification import SEEDS, cross_validate
    from aenmf_lib.metrics.classifiers import FOREST, KNN, LOGISTIC
    from aenmf_lib.metrics.splits import PUBLISHED, Splits
    from aenmf_lib.results import read_embeddings
    from aenmf_lib.results.files import read
    from aenmf_lib.results.schema import skip_reason

    if reason := skip_reason(read(options.model).uns):
        logging.info("%s: skipped: %s", options.model, reason)
        options.done.touch()
        return
    values = parameters.resolve([options.notebook], options.params)[options.notebook.stem]
    max_cells, seed = values.get("max_cells", PUBLISHED.max_cells), values.get("seed", PUBLISHED.subset_seed)
    embeddings = read_embeddings([options.model])
    cross_validate(
        embeddings.H,
        embeddings.obs,
        labels=[options.label],
        splits=Splits(max_cells=max_cells, subset_seed=seed),
        classifiers=[LOGISTIC, KNN, values.get("forest", FOREST)],
        seeds=values.get("classification_seeds", SEEDS),
        n_jobs=values.get("n_jobs", -1),
        cache=options.cache,
    )
    options.done.touch()


def _sum(options: argparse.Namespace) -> None:
    """Sum over one shard of the cells."""
    from aenmf_lib.training.sharding import sum_shard

    sum_shard(options.cells, *options.shard, options.out)


def _merge(options: argparse.Namespace) -> None:
    """Add up the sums over all shards."""
    from aenmf_lib.training.sharding import merge_shards

    merge_shards(options.shards, options.cells, options.out)


def _project(options: argparse.Namespace) -> None:
    """Compute the usages of new cells with the programs of a results file."""
    for name, path in (("CELLS", options.cells), ("MODEL", options.model)):
        if not path.exists():
            raise ValueError(f"{name}={path} does not exist. Pass an existing file: make project CELLS=… MODEL=….")
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
    from aenmf_lib.workflow import site

    index = site.build(options.run, options.out)
    size = sum(file.stat().st_size for file in index.parent.rglob("*") if file.is_file())
    logging.info(
        "wrote %s (%.1f MB). Open it in a browser; to send the report, compress its folder.", index, size / 1e6
    )


def _simulate(options: argparse.Namespace) -> None:
    """Write simulated cells. The file name selects the scenario."""
    from aenmf_lib.data.simulation import write_demo

    write_demo(options.path)


def _check(options: argparse.Namespace) -> None:
    """Check that results files have the published keys and valid values."""
    from aenmf_lib.results import check

    faults = {path: check(path) for path in options.files}
    for path, found in faults.items():
        print(f"{path}: {'; '.join(found) or 'ok'}")
    sys.exit(any(faults.values()))


def _compile(options: argparse.Namespace) -> None:
    """Compile the numerical kernels, which takes about a minute once."""
    from aenmf_lib.training.coordinate_descent import compile_kernels

    compile_kernels()


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
        _execute: {"notebook": file, "--params": file, "-p": override, "--report": file | required},
        _score: {"model": file, "--label": required, "--notebook": file | required, "--params": file}
        | {"--cache": file | required, "--done": file | required},
        _sum: {"cells": file, "--shard": required | {"type": int, "nargs": 2, "metavar": ("I", "N")}}
        | {"--out": file | required},
        _merge: {"cells": file, "shards": files, "--out": file | required},
        _project: {"cells": file, "model": file, "--out": file | required, "--fractional": flag}
        | {f"--{name}": {"default": ""} for name in _OF_CELLS},
        _copy: {"notebook": file, "-p": override, "--out": file | required},
        _report: {"run": file, "--out": file | required},
        _simulate: {"path": file},
        _check: {"files": files},
        _compile: {},
    }
    parser = argparse.ArgumentParser(prog="python -m aenmf_lib", description="Commands used by the Makefile.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for command, settings in arguments.items():
        sub = commands.add_parser(command.__name__[1:], help=command.__doc__, description=command.__doc__)
        sub.set_defaults(command=command)
        for name, options in settings.items():
            sub.add_argument(name, **options)
    return parser
