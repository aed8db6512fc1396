"""What `predict` writes replaces only what an earlier `predict` wrote."""

import json
import os

import pandas as pd
import pytest

from coding_vessels.cli import main
from coding_vessels.phantom import write_cohort


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    return write_cohort(tmp_path_factory.mktemp("outputs") / "c", 3, seed=2, size=96)


def words(cohort, place, *more):
    return ["predict", "--csv", f"{cohort}/test.csv", "--images", str(cohort), "--out", f"{place}/output.csv", *map(str, more)]


def test_foreign_files_stay(cohort, tmp_path, capsys):
    """The user's own pictures and tables survive --overwrite, and the record names what is ours."""
    pictures = tmp_path / "o"
    pictures.mkdir()
    (pictures / "mine_BA.png").write_bytes(b"mine")
    overlays = ["--overlays", pictures, "--threshold", 0.001, "--overwrite"]
    assert main(words(cohort, tmp_path, *overlays)) == 0
    first = json.loads((tmp_path / "prediction.json").read_text())["files"]
    assert "output.csv" in first and any(name.startswith("o/") for name in first)
    assert main(words(cohort, tmp_path, "--overlays", pictures, "--threshold", 1, "--overwrite")) == 0
    assert [path.name for path in pictures.iterdir()] == ["mine_BA.png"]  # ours are gone, nothing is flagged now
    (tmp_path / "errors.csv").write_text("my own errors")
    assert main(words(cohort, tmp_path, "--overwrite")) == 1
    assert "errors.csv was not written by this program" in capsys.readouterr().err
    assert (tmp_path / "errors.csv").read_text() == "my own errors"


@pytest.mark.parametrize("name", ["positions.csv", "probabilities.csv", "prediction.json"])
def test_foreign_tables_stay(cohort, tmp_path, capsys, name):
    """Only what the user has named may be replaced without being ours."""
    (tmp_path / name).write_text("mine")
    assert main(words(cohort, tmp_path, "--overwrite")) == 1
    assert f"{name} was not written by this program" in capsys.readouterr().err
    assert (tmp_path / name).read_text() == "mine" and not (tmp_path / "output.csv").exists()


def test_an_output_of_another_name_stays(cohort, tmp_path):
    assert main(words(cohort, tmp_path)) == 0
    again = words(cohort, tmp_path, "--overwrite")
    assert main([word.replace("output.csv", "other.csv") for word in again]) == 0
    assert (tmp_path / "output.csv").exists() and (tmp_path / "other.csv").exists()


def test_a_picture_in_the_way_is_not_replaced(cohort, tmp_path, capsys):
    assert main(words(cohort, tmp_path, "--overlays", tmp_path / "o", "--threshold", 0.001)) == 0
    name = sorted((tmp_path / "o").iterdir())[0].name
    (tmp_path / "prediction.json").unlink()
    before = (tmp_path / "output.csv").read_bytes()
    assert main(words(cohort, tmp_path, "--overlays", tmp_path / "o", "--threshold", 0.002, "--overwrite")) == 1
    assert "was not written by this program" in capsys.readouterr().err and (tmp_path / "o" / name).exists()
    assert (tmp_path / "output.csv").read_bytes() == before


def test_no_ordinary_file(cohort, tmp_path, capsys):
    os.mkfifo(tmp_path / "output.csv")
    assert main(words(cohort, tmp_path, "--overwrite")) == 1
    assert "is no ordinary file" in capsys.readouterr().err


def test_folder_name_in_another_encoding(cohort, tmp_path):
    """Latin-1 bytes in a folder's name: every study is predicted, and the tables are written."""
    strange = os.fsdecode(os.fsencode(tmp_path) + b"/b\xe4r")
    os.symlink(cohort, strange)
    (cohort / "images" / "1001LI-A.jpg").rename(cohort / "images" / "gone.jpg")
    try:
        assert main(words(strange, tmp_path, "--report", f"{tmp_path}/r.html")) == 0
    finally:
        (cohort / "images" / "gone.jpg").rename(cohort / "images" / "1001LI-A.jpg")
    assert len(pd.read_csv(tmp_path / "output.csv")) == 3 and (tmp_path / "r.html").exists()


def test_resume_knows_tables_that_changed(tmp_path):
    """A prediction that read another truth or other histories is not the same."""
    from types import SimpleNamespace

    from coding_vessels.cli import _facts

    names = "csv", "images", "out", "threshold", "require_all", "shard", "overlays", "report", "single_file", "truth"
    args = SimpleNamespace(**dict.fromkeys(names), patients=str(tmp_path / "patients.csv"))
    engine = SimpleNamespace(file=tmp_path, source="s", name="n", precision="p")
    told = []
    for age in (40, 40, 75):
        (tmp_path / "patients.csv").write_text(f"Index,age\n1001,{age}\n")
        told.append(_facts(args, engine))
    assert told[0] == told[1] != told[2]
