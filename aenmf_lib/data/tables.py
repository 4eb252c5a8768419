"""Reading and writing tables as CSV. Names are text: a class named '01', 'NA' or 'TRUE' stays as it is."""

import io
from pathlib import Path

import pandas as pd

from aenmf_lib.data.files import atomic

# Columns of text. Names that a user chose and fingerprints of scores may look like numbers; a version may be empty.
NAMES = (
    "Model", "label", "class", "predicted", "cell", "cell_type", "donor_id", "on", "made_from", "gene", "symbol",
    "top_genes", "specific_genes", "top_type", "usage_by_type", "gene_set", "gene_set_overlap", "other", "shared_genes",
    "version",
)  # fmt: skip


def write_table(table: pd.DataFrame, path: str | Path) -> None:
    """Write a table as CSV atomically, without its index."""
    with atomic(path) as partial:
        table.to_csv(partial, index=False)


def read_table(path: str | Path) -> pd.DataFrame:
    """Read a CSV file that `write_table` wrote. Errors that the figures raise for the table name its file.

    The columns `NAMES` are text. In the other columns numbers are exact, and an empty number is NaN. Raises
    FileNotFoundError if the file does not exist, and ValueError if it is empty or not a table.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path} does not exist. Run the notebook that writes it, or pass another folder.")
    try:
        table = parse_table(Path(path).read_bytes())
    except ValueError as error:  # all errors of pandas about the content are ValueErrors
        raise ValueError(
            f"{path} is not a table ({str(error).strip()}). Delete it and run the notebook that writes it."
        ) from error
    table.attrs["source"] = str(path)
    return table


def parse_table(text: bytes) -> pd.DataFrame:
    """Return the table in the bytes of a CSV file, as `read_table` does."""
    from_windows = text[: text.find(b"\n") + 1].endswith(b"\r\n")
    table = pd.read_csv(
        io.BytesIO(text),
        dtype=dict.fromkeys(NAMES, object),
        keep_default_na=False,
        na_values=[""],
        float_precision="round_trip",
        lineterminator=None if from_windows else "\n",  # a name may end in "\r"
    )
    return table.fillna({name: "" for name in NAMES if name in table})
