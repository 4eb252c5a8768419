"""The command line ``python -m aenmf_lib COMMAND``. Each command imports its modules only when it runs."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from aenmf_lib.workflow import parameters, run


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command. For an error that the user can correct, print one message and exit with status 1."""
    options = _parser().parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        options.command(options)
    except (ValueError, OSError, MemoryError, run.RunError) as error:  # a ParameterError is a ValueError
        sys.exit(f"error: {error}")


def _resolve(options: argparse.Namespace) -> None:
    """Check make's variables and write the values for each notebook."""
    given = parameters.parse_variables(options.variables, options.valid, options.notebooks, options.goals)
    if not options.out:
        return
    values = parameters.resolve(options.notebooks, options.params, [*options.overrides, *given])
    for file in options.out:
        parameters.require_known(file.stem, values, f"--out {file}", "notebook")
        if file.stem == "01_filter":
            _require_same_data(file, values["01_filter"].get("data"))
    for file in options.out:
        parameters.write(file, values[file.stem])


def _require_same_data(file: Path, data: str | None) -> None:
    """Raise ParameterError if existing results were made from other cells."""
    if not data:
        place = "notebooks/params/<data set>.yaml"
        raise parameters.ParameterError(
            f"No cells to read. Pass DATA=cells.h5ad, or add the line 'data: cells.h5ad' to {place}."
        )
    before, folder = parameters.read_yaml(file).get("data", data) if file.is_file() else data, file.parents[1]
    if before != data:
        raise parameters.ParameterError(
            f"{folder}/ was made from {before}, not from {data}. Pass DATASET=other to keep both, or remove it with: "
            f"make clean DATASET={folder.name}"
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
    arguments = {
        _resolve: {"--notebooks": files | required, "--params": file, "-p": override, "--out": files | {"default": []}}
        | {"--variables": words, "--valid": words, "--goals": words},
        _execute: {"notebook": file, "--params": file, "-p": override, "--report": file | required},
        _score: {"model": file, "--label": required, "--notebook": file | required, "--params": file}
        | {"--cache": file | required, "--done": file | required},
        _sum: {"cells": file, "--shard": required | {"type": int, "nargs": 2, "metavar": ("I", "N")}}
        | {"--out": file | required},
        _merge: {"cells": file, "shards": files, "--out": file | required},
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
