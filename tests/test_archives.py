"""An archive read in shards, or by the workers of a Ray cluster, comes to the same files as one process writes."""

import shutil
import subprocess
import sys
import time

import pytest

from coding_vessels.cli import main
from coding_vessels.phantom import write_cohort

TABLES = "output.csv", "probabilities.csv", "positions.csv"


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    """Return a folder with eight patients, one of whom has a broken frame, and what one process makes of them."""
    folder = tmp_path_factory.mktemp("archive")
    made = write_cohort(folder / "cohort", 8, seed=3, size=400)
    (made / "images/1003RV-A.jpg").write_bytes(b"<html>")
    assert main(words(made, folder / "whole")) == 3
    return made, folder / "whole"


def words(cohort, out, *more):
    """Return the words of a prediction."""
    out.mkdir()
    return ["predict", "--csv", str(cohort / "test.csv"), "--images", str(cohort), "--out", str(out / "output.csv"), "--threshold", "0.1", *more]


def test_shards_put_together_are_the_whole(cohort, tmp_path):
    """Three shards; the errors of the broken study are in its own."""
    made, whole = cohort
    parts = [tmp_path / str(number) for number in (1, 2, 3)]
    assert [main(words(made, part, "--shard", f"{part.name}/3")) for part in parts] == [0, 3, 0]
    for name in TABLES:
        first, *others = [(part / name).read_bytes() for part in parts]
        assert b"".join([first, *(other.split(b"\n", 1)[1] for other in others)]) == (whole / name).read_bytes()
    assert not (parts[0] / "errors.csv").exists()
    assert (parts[1] / "errors.csv").read_bytes() == (whole / "errors.csv").read_bytes()


def test_rows_that_are_lost_are_listed_by_the_first_shard(cohort, tmp_path):
    """However its number is written; the others do not list them again."""
    made = tmp_path / "cohort"
    shutil.copytree(cohort[0], made)
    with open(made / "test.csv", "a") as table:
        table.write(",".join(["9999"] + ["0"] * 22) + "\n")
    status = {name: main(words(made, tmp_path / name, "--shard", f"{name}/3")) for name in ("01", "3")}
    assert status == {"01": 3, "3": 0}
    assert "9999" in (tmp_path / "01/errors.csv").read_text() and not (tmp_path / "3/errors.csv").exists()


def test_a_shard_that_is_none_is_refused(cohort, tmp_path, capsys):
    """Words, numbers out of range, and more shards than studies."""
    for number, (shard, said) in enumerate((("2", "give I/N"), ("0/2", "count from 1"), ("3/2", "count from 1"), ("2/100", "empty"))):
        assert main(words(cohort[0], tmp_path / str(number), "--shard", shard)) == 1
        assert said in capsys.readouterr().err and list((tmp_path / str(number)).iterdir()) == []


def test_ray_makes_the_same_files(cohort, tmp_path):
    """Two workers of this machine, with a page and overlays; one of them is killed while it reads."""
    pytest.importorskip("ray")
    made, whole = cohort
    more = "--ray", "local", "--workers", "2", "--report", str(tmp_path / "page.html"), "--overlays", str(tmp_path / "pictures")
    process = subprocess.Popen([sys.executable, "-m", "coding_vessels", *words(made, tmp_path / "ray", *more)], stderr=subprocess.PIPE, text=True)
    killed = False
    while process.poll() is None and not killed:
        workers = subprocess.run(["pgrep", "-f", "^ray::.*MapWorker"], capture_output=True, text=True).stdout.split()
        killed = bool(workers) and subprocess.run(["kill", "-9", workers[0]]).returncode == 0
        time.sleep(0.2)
    assert process.wait(timeout=300) == 3, process.stderr.read()
    assert killed
    for name in (*TABLES, "errors.csv"):
        assert (tmp_path / "ray" / name).read_bytes() == (whole / name).read_bytes()
    assert (tmp_path / "page.html").stat().st_size > 100_000 and any((tmp_path / "pictures").iterdir())
