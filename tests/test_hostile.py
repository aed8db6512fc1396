"""Bad input gets one sentence, never a traceback, and leaves nothing half-written."""

import errno
import io
import os
import shutil
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from coding_vessels.anatomy import LABELS
from coding_vessels.cli import main
from coding_vessels.engines import load_engine
from coding_vessels.files import locked
from coding_vessels.model import load_model
from coding_vessels.phantom import write_cohort
from coding_vessels.studies import FrameError, read_cohort, read_frame, read_table

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


def test_what_is_no_ordinary_file(tmp_path):
    """A pipe would be waited for, a device read without end, and a huge file fill the memory."""
    os.mkfifo(tmp_path / "1LI-A.jpg")
    (tmp_path / "2LI-A.jpg").symlink_to("/dev/zero")
    with open(tmp_path / "3LI-A.jpg", "wb") as stream:
        stream.write(b"\xff\xd8\xff")
        stream.truncate(2_000_000_000)  # takes no space
    for name, sentence in (("1", "no ordinary file"), ("2", "no ordinary file"), ("3", "larger than 256 MB")):
        with pytest.raises(FrameError, match=sentence):
            read_frame(tmp_path / f"{name}LI-A.jpg")


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


@pytest.mark.parametrize("index", ["../../etc/passwd", "=1+1", "", "nan", "1001 LI-A", "김", "9" * 400, "0" * 300 + "1002"])
def test_strange_index_is_only_a_missing_patient(cohort, tmp_path, index):
    (tmp_path / "t.csv").write_text(f"Index\n1001\n{index}\n", encoding="utf-8")
    studies, problems = read_cohort(tmp_path / "t.csv", cohort, labelled=False)
    assert [study.index for study in studies] == ["1001"]
    assert index == "" or len(problems) >= 1


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
        ("predict --csv {1}/test.csv --images {1} --out {0}/x.csv --report {0}/x.csv", "is named twice"),
        ("predict --csv {1}/test.csv --images {1} --out {0}/x.csv --report {0}/positions.csv", "is named twice"),
        ("predict --csv {1}/test.csv --images {1} --out {1}/test.csv --overwrite", "or is an input"),
        ("predict --csv {1}/test.csv --images {1} --out {0}/x.csv --report {1}/groundtruth.csv --truth {1}/groundtruth.csv --overwrite", "or is an input"),
        ("predict --csv {1}/test.csv --images {1} --out {1}/images --overwrite", "is a folder"),
        ("predict --csv {1}/test.csv --images {1} --out {0}/x.csv --overlays {1}/test.csv --overwrite", "or is an input"),
        ("evaluate --truth {1}/groundtruth.csv --output {1}/test.csv --out {1}/test.csv", "is a file"),
        ("export --model {1}/test.csv", "is not a model of coding_vessels"),
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


def test_truth_that_lacks_a_patient(cohort, tmp_path, capsys):
    (tmp_path / "truth.csv").write_text("\n".join((cohort / "groundtruth.csv").read_text().splitlines()[:3]) + "\n")
    words = f"predict --csv {cohort}/test.csv --images {cohort} --out {tmp_path}/o/output.csv --report {tmp_path}/o/r.html --truth {tmp_path}/truth.csv"
    assert main(words.split()) == 1
    assert "truth.csv lacks patient 1003, 1004" in capsys.readouterr().err and not (tmp_path / "o").exists()


def test_a_second_run_that_fails_keeps_the_first(cohort, tmp_path, capsys):
    """Tables, page and pictures of a good run stay when the next one predicts nobody."""
    words = f"predict --csv {cohort}/test.csv --images {cohort} --out {tmp_path}/o/output.csv --overlays {tmp_path}/o/p --report {tmp_path}/o/r.html --threshold 0.001"
    assert main(words.split()) == 0
    snapshot = lambda: {path: path.read_bytes() for path in (tmp_path / "o").rglob("*") if path.is_file()}
    first = snapshot()
    assert any(path.suffix == ".png" for path in first)
    for path in (cohort / "images").iterdir():
        path.write_bytes(b"")
    assert main([*words.split(), "--overwrite"]) == 1
    assert "no study of" in capsys.readouterr().err and snapshot() == first


def test_a_model_that_would_unpack_to_gigabytes(tmp_path, capsys):
    """The directory of the archive says how large its parts are; nothing is unpacked."""
    import zipfile

    with zipfile.ZipFile(tmp_path / "bomb.keras", "w", zipfile.ZIP_DEFLATED) as archive, archive.open("model.weights.h5", "w") as part:
        for _ in range(300):
            part.write(bytes(1_000_000))
    assert main(["export", "--model", str(tmp_path / "bomb.keras")]) == 1
    assert "bomb.keras is not a model of coding_vessels (it would unpack to 300 MB)" in capsys.readouterr().err


def test_a_hundred_thousand_unknown_images_are_summarised(cohort, capsys):
    """`check` names fifty of them, and how many more there are."""
    (cohort / "test.csv").write_text("Index\n1001\n" + "".join(f"x{i}\n" for i in range(100_000)))
    assert main(["check", "--unlabelled", "--csv", str(cohort / "test.csv"), "--images", str(cohort)]) == 1
    printed = capsys.readouterr().out
    assert "... and 99,950 more: add the images or remove the row" in printed and len(printed.splitlines()) < 120


def small_network(settings):
    import keras

    frames = keras.Input((8, 64, 64), dtype="uint8")
    scores = keras.layers.Dense(22, name="scores")(keras.layers.Flatten()(frames))
    return keras.Model(frames, {"labels": keras.layers.Activation("sigmoid", name="labels")(scores)})


def test_images_removed_during_a_training(cohort, tmp_path, capsys, monkeypatch):
    """One sentence that names the frame, not TensorFlow's traceback."""
    from coding_vessels import training

    def remove_and_build(settings):
        for patient in ("1001", "1002", "1003"):
            (cohort / f"images/{patient}RV-A.jpg").unlink(missing_ok=True)
        return small_network(settings)

    monkeypatch.setattr(training, "build_model", remove_and_build)
    words = f"train --csv {cohort}/groundtruth.csv --images {cohort} --out {tmp_path}/run --epochs 1 --size 64"
    assert main(words.split()) == 1
    message = capsys.readouterr().err.strip().splitlines()[-1]
    assert message.startswith("coding_vessels train: ") and "RV-A.jpg cannot be opened" in message and "Traceback" not in message


@pytest.mark.parametrize("kilobytes", [20, 1000])
def test_full_disk_in_training(cohort, tmp_path, capsys, monkeypatch, kilobytes):
    """No file may grow beyond 20 kB (the cache is full), or 1 MB (the state): one sentence, and no half of a file."""
    import resource

    from coding_vessels import training

    monkeypatch.setattr(training, "build_model", small_network)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (kilobytes * 1024, before[1]))
    try:
        status = main(f"train --csv {cohort}/groundtruth.csv --images {cohort} --out {tmp_path}/run --epochs 1 --size 64".split())
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert status == 1 and "the disk is full; free some space" in capsys.readouterr().err.strip().splitlines()[-1]
    assert {path.name for path in (tmp_path / "run").iterdir()} == {"settings.json", "cache"}
    assert {path.suffix for path in (tmp_path / "run/cache").iterdir()} <= {".npy"}


def test_full_disk_in_export(tmp_path):
    """No file may grow beyond 100 kB: one sentence, and no part of an export."""
    import resource
    import subprocess
    import sys

    from coding_vessels.engines import SHIPPED

    shutil.copy(SHIPPED, tmp_path / "best.keras")
    limit = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (100 * 1024,) * 2)
    words = [sys.executable, "-m", "coding_vessels", "export", "--model", str(tmp_path / "best.keras")]
    done = subprocess.run(words, capture_output=True, text=True, preexec_fn=limit)
    assert done.returncode == 1 and "best.xml cannot be written" in done.stderr.splitlines()[-1] and "Traceback" not in done.stderr, done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["best.keras"]


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be", "utf-32"])
def test_wide_letters_without_a_mark(tmp_path, encoding):
    (tmp_path / "t.csv").write_bytes("Index,BA\n1,0\n".encode(encoding))
    assert read_table(tmp_path / "t.csv").to_dict("list") == {"Index": ["1"], "BA": ["0"]}


def test_lines_are_counted_in_the_file(tmp_path):
    """A quoted value may go on in the next line; a row too long is named by the line it begins in."""
    (tmp_path / "t.csv").write_text('Index,note\n1,"a\nb"\n2,x\n,\n3,y\n')
    assert read_table(tmp_path / "t.csv").index.tolist() == [2, 4, 6]
    (tmp_path / "t.csv").write_text('Index,note\n1,"a\nb"\n2,x,y\n')
    with pytest.raises(ValueError, match="line 4 has 3 values, line 1 has 2"):
        read_table(tmp_path / "t.csv")


@pytest.mark.parametrize("read", [read_table, load_model, load_engine])
def test_a_pipe_is_no_file(tmp_path, read):
    os.mkfifo(tmp_path / "best.keras")
    with pytest.raises(ValueError, match="best.keras is no ordinary file"):
        read(tmp_path / "best.keras")


@pytest.mark.parametrize("odd", ["hot pixel", "black border", "few zeros", "white letters"])
def test_sixteen_bits_keep_their_levels(tmp_path, odd):
    """Ten bits in the middle of sixteen: what is not of the picture takes no levels from it."""
    deep = np.random.default_rng(0).integers(0, 1024, (300, 300)).astype(np.uint16)
    if odd in ("black border", "few zeros"):
        deep += 31000
    place, value = {"hot pixel": ((5, 5), 65535), "black border": (np.s_[:30], 0), "few zeros": (np.s_[3, :100], 0),
                    "white letters": (np.s_[:20, :20], 65535)}[odd]
    deep[place] = value
    Image.fromarray(deep).save(tmp_path / "1LI-A.png")
    assert len(np.unique(read_frame(tmp_path / "1LI-A.png"))) > 200


def test_jpeg_of_twelve_bits_and_of_endless_passes(tmp_path):
    picture = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64), np.uint8)).save(picture, "JPEG", progressive=True)
    data = picture.getvalue()
    start = data.index(b"\xff\xda")
    (tmp_path / "passes.jpg").write_bytes(data[:-2] + data[start:-2] * 60 + data[-2:])
    with pytest.raises(FrameError, match="more than 100 passes"):
        read_frame(tmp_path / "passes.jpg")
    sizes = data.index(b"\xff\xc2") + 4
    (tmp_path / "deep.jpg").write_bytes(data[:sizes] + b"\x0c" + data[sizes + 1:])
    with pytest.raises(FrameError, match="12 bits a pixel; export it with 8"):
        read_frame(tmp_path / "deep.jpg")


def test_a_disk_that_fails_ends_one_study_only(cohort, tmp_path, monkeypatch, capsys):
    """A file that can be opened but not read is listed; the others are checked, and predicted."""
    bad, read_bytes = cohort / "images" / "1002RV-A.jpg", Path.read_bytes

    def failing(path):
        if path.name == bad.name:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return read_bytes(path)

    monkeypatch.setattr(Path, "read_bytes", failing)
    studies, problems = read_cohort(cohort / "test.csv", cohort, labelled=False, decode=True)
    assert [study.index for study in studies] == ["1001", "1003", "1004"]
    assert "cannot be read (Input/output error)" in problems["problem"].iloc[0]
    assert main(f"predict --csv {cohort}/test.csv --images {cohort} --out {tmp_path}/o/output.csv".split()) == 3
    assert "cannot be read" in (tmp_path / "o" / "errors.csv").read_text()


@pytest.mark.parametrize("option", ["--report", "--overlays"])
def test_a_place_that_cannot_be_written_is_known_before_the_work(cohort, tmp_path, capsys, option):
    words = f"predict --csv {cohort}/test.csv --images {cohort} --out {tmp_path}/o/output.csv"
    (tmp_path / "file").write_text("")
    assert main([*words.split(), option, f"{tmp_path}/file/there/r.html"]) == 1
    assert "cannot be written" in capsys.readouterr().err
    assert not (tmp_path / "o").exists()
    assert main(words.split()) == 0


def test_two_predicts_do_not_share_a_page(cohort, tmp_path, capsys):
    words = f"predict --csv {cohort}/test.csv --images {cohort} --out {tmp_path}/o/output.csv --report {tmp_path}/p/r.html"
    with locked(tmp_path / "p" / "r.html"):
        done = subprocess.run([sys.executable, "-m", "coding_vessels", *words.split()], capture_output=True, text=True)
    assert done.returncode == 1 and "another process is writing r.html" in done.stderr


def test_numba_without_a_place_for_its_results(tmp_path):
    """An installation that cannot be written, and no home: compiled anew each time, not refused."""
    program = "from coding_vessels.films import compiled\n@compiled\ndef twice(x): return 2 * x\nprint(twice(21))"
    (tmp_path / "site").mkdir()
    blocked = (
        "import numba.core.caching as caching\n"
        "caching.CacheImpl._locator_classes = []\n"
    )
    done = subprocess.run([sys.executable, "-c", blocked + f"exec({program!r})"], capture_output=True, text=True)
    assert "42" in done.stdout, done.stderr[-2000:]


def test_project_tells_of_a_carotid_that_fills_nothing(tmp_path, monkeypatch, capsys):
    """Vessels that touch, or a wrong inlet, give frames with next to nothing in them: that is said."""
    from coding_vessels import projection

    def projected(files, out, *more):
        Path(out).mkdir()
        (Path(out) / "sources.csv").write_text("Index,file,LI,LV,RI,RV\n1001,a.nii.gz,0.32,0.61,0.012,0.64\n")
        return [Path(out)]

    monkeypatch.setattr(projection, "project", projected)
    assert main(["project", "a.nii.gz", "--out", str(tmp_path / "p")]) == 0
    assert capsys.readouterr().err.splitlines() == [
        "a.nii.gz: RI fills 1% of the vessels; look at its frames, or give its inlet in --inlets."]
