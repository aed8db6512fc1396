"""Bad input gets one sentence, never a traceback, and leaves nothing half-written."""

import shutil
import struct
import zlib
from pathlib import Path

import pytest

from coding_vessels.anatomy import LABELS
from coding_vessels.cli import main
from coding_vessels.phantom import write_cohort
from coding_vessels.studies import FrameError, read_cohort, read_frame

@pytest.fixture(scope="session")
def original(tmp_path_factory):
    return write_cohort(tmp_path_factory.mktemp("original") / "cohort", 4, size=64, workers=1)


@pytest.fixture
def cohort(original, tmp_path):
    return Path(shutil.copytree(original, tmp_path / "cohort"))


def bomb():
    """Return a PNG whose header claims 60,000 x 60,000 pixels."""
    header = struct.pack(">IIBBBBB", 60000, 60000, 8, 0, 0, 0, 0)
    chunk = lambda name, data: struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"0" * 100)) + chunk(b"IEND", b"")


@pytest.mark.parametrize("content", [b"", b"<html>", b"\xff\xd8\xff", bytes(1000), bomb(), bomb()[:40]], ids=["empty", "html", "start", "zeros", "bomb", "cut"])
def test_unreadable_frame(tmp_path, content):
    (tmp_path / "1LI-A.png").write_bytes(content)
    with pytest.raises(FrameError, match="1LI-A.png"):
        read_frame(tmp_path / "1LI-A.png")


HEADER = ",".join(["Index", *LABELS])
ROW = "1001" + ",0" * 22


@pytest.mark.parametrize(
    "text, sentence",
    [
        ("", "cannot be read as a CSV"),
        ("\n\n", "cannot be read as a CSV"),
        ("Patient\n1\n", "no column 'Index'"),
        (HEADER + ",BA\n" + ROW + ",0\n", "has the column 'BA' twice"),
        (HEADER.replace(",BA", "") + "\n1001" + ",0" * 21, "lacks the columns BA"),
        (HEADER + "\n" + ROW + ",1,1,1\n", "cannot be read as a CSV"),
    ],
)
def test_unreadable_table(cohort, tmp_path, text, sentence, capsys):
    (tmp_path / "t.csv").write_text(text)
    assert main(["train", "--csv", str(tmp_path / "t.csv"), "--images", str(cohort), "--out", str(tmp_path / "run")]) == 1
    message = capsys.readouterr().err
    assert sentence in message and "t.csv" in message and not (tmp_path / "run").exists()


@pytest.mark.parametrize("index", ["../../etc/passwd", "=1+1", "", "nan", "1001 LI-A", "김", "9" * 400])
def test_strange_index_is_only_a_missing_patient(cohort, tmp_path, index):
    (tmp_path / "t.csv").write_text(f"Index\n1001\n{index}\n", encoding="utf-8")
    studies, problems = read_cohort(tmp_path / "t.csv", cohort, labelled=False)
    assert [study.index for study in studies] == ["1001"]
    assert index == "" or len(problems) >= 8


@pytest.mark.parametrize(
    "words, sentence",
    [
        ("simulate {0}/x --patients 0", "patients is 0"),
        ("simulate {0}/x --patients 1 --seed -1", "seed is -1"),
        ("simulate {0}/x --patients 1 --size 8", "size is 8"),
        ("simulate {0}/x --patients 1 --workers 0", "workers is 0"),
        ("train --csv {1}/groundtruth.csv --images {1} --out {0}/x --epochs 0", "epochs is 0"),
        ("train --csv {1}/groundtruth.csv --images {1} --out {0}/x --batch-size -1", "batch_size is -1"),
        ("train --csv {1}/groundtruth.csv --images {1} --out {0}/x --size 70", "size is 70"),
        ("train --csv {1}/groundtruth.csv --images {0}/none --out {0}/x", "is not a folder"),
        ("predict --csv {1}/test.csv --images {1} --model {1}/test.csv --out {0}/x --threshold 2", "threshold is 2"),
        ("predict --csv {1}/test.csv --images {1} --model {1}/test.csv --out {0}/x", "is not a model of coding_vessels"),
        ("evaluate --truth {1}/groundtruth.csv --output {0}/none.csv", "does not exist"),
    ],
)
def test_wrong_words_leave_nothing_behind(cohort, tmp_path, words, sentence, capsys):
    assert main(words.format(tmp_path, cohort).split()) == 1
    assert sentence in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cohort"]


def test_duplicate_patient_is_reported(cohort, tmp_path):
    (tmp_path / "t.csv").write_text("Index\n1001\n1002\n01001\n")
    studies, problems = read_cohort(tmp_path / "t.csv", cohort, labelled=False)
    assert len(studies) == 2 and problems[problems.line == 4].problem.item() == "the patient stands in line 2 already"


def test_threads_share_a_cache(cohort, tmp_path):
    """Many threads load the same studies through one empty cache."""
    from concurrent.futures import ThreadPoolExecutor

    from coding_vessels.batches import load_study
    from coding_vessels.preprocessing import Preprocessing

    studies, _ = read_cohort(cohort / "groundtruth.csv", cohort)
    with ThreadPoolExecutor(8) as pool:
        loaded = list(pool.map(lambda study: load_study(study, Preprocessing(32), tmp_path / "cache"), studies * 20))
    assert all((loaded[i] == loaded[i % 4]).all() for i in range(80))
    assert len(list((tmp_path / "cache").iterdir())) == 4
