"""Names in tables stay as they are, and numbers are exact."""

import itertools

import numpy as np
import pandas as pd
import pytest

from aenmf_lib.data import tables
from aenmf_lib.data.tables import read_table, write_table

NAMES = [
    *("NA", "nan", "None", "null", "N/A", "", "1", "01", "1.0", "1e5", "TRUE", "true", "-", "#c", "inf", "NaT", "=1"),
    *(" x", "x", "x ", 'a"b', "a'b", "a,b", "a\nb", "a\rb", "x\r", "a\r\nb", "a\tb", "é—β", "T細胞", "\ufeffx", "_x"),
]


@pytest.mark.parametrize("column", tables.NAMES)
def test_every_name_stays_as_it_is(column, tmp_path):
    table = pd.DataFrame({column: NAMES, "value": np.arange(len(NAMES)) / 7})
    for part in (table, table.iloc[[6]], table.iloc[[0, 1]], table.iloc[[8, 7]], table.iloc[[5]]):
        write_table(part, tmp_path / "table.csv")
        read = read_table(tmp_path / "table.csv")
        assert read[column].tolist() == part[column].tolist()
        assert read["value"].tolist() == part["value"].tolist()


def test_numbers_are_exact_empty_numbers_are_nan_and_booleans_are_booleans(tmp_path):
    values = np.random.default_rng(0).random(1000) ** 9
    holed = np.where(np.arange(1000) % 3, values, np.nan)
    table = pd.DataFrame({"class": "NA", "F1": values, "AUROC": holed, "seed": range(1000), "used": True, "sd": np.nan})
    write_table(table, tmp_path / "table.csv")
    pd.testing.assert_frame_equal(read_table(tmp_path / "table.csv"), table, check_exact=True)


def test_a_table_that_a_spreadsheet_on_windows_saved_is_read(tmp_path):
    path = tmp_path / "table.csv"
    path.write_bytes(b"class,F1,donor_id\r\n01,0.5,NA\r\n")
    assert read_table(path).to_dict("records") == [{"class": "01", "F1": 0.5, "donor_id": "NA"}]


def test_options_of_pandas_change_neither_the_file_nor_the_table(tmp_path):
    table = pd.DataFrame({"class": NAMES, "F1": np.arange(len(NAMES)) / 7})
    write_table(table, tmp_path / "one.csv")
    one = read_table(tmp_path / "one.csv")
    options = {"display.precision": 2, "display.max_rows": 3, "future.infer_string": True, "mode.copy_on_write": True}
    with pd.option_context(*itertools.chain(*options.items())):
        write_table(table, tmp_path / "two.csv")
        two = read_table(tmp_path / "one.csv")
    assert (tmp_path / "one.csv").read_bytes() == (tmp_path / "two.csv").read_bytes()
    pd.testing.assert_frame_equal(one, two, check_exact=True, check_column_type=False)


def test_a_missing_or_damaged_file_is_named_in_the_error(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere\.csv does not exist\. Run the notebook that writes it"):
        read_table(tmp_path / "nowhere.csv")
    path = tmp_path / "scores.csv"
    for content in (b"", b"a,b\n1,2\n1,2,3,4\n", b"a,b\n\xff\xfe\x00,1\n"):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"scores\.csv is not a table \(.*\)\. Delete it"):
            read_table(path)
