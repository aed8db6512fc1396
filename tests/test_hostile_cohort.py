"""A cohort of 100 patients, 40 of them broken in 40 ways: 60 predictions as if nothing had happened, 40 reasons."""

import gzip
import io
import os
import resource
import struct
import subprocess
import sys
import zlib

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from coding_vessels.cli import main
from coding_vessels.phantom import write_cohort


def png_of(width, height, depth=8, content=b"0" * 100):
    """Return a PNG whose header claims a size."""
    chunk = lambda name, data: struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(content)) + chunk(b"IEND", b"")


def saved(picture, kind, **options):
    stream = io.BytesIO()
    picture.save(stream, kind, **options)
    return stream.getvalue()


def damaged(data, start, bad):
    return data[:start] + bad + data[start + len(bad) :]


def resized(jpeg, height, width):
    """Return a JPEG whose header claims another size."""
    at = next(jpeg.index(mark) for mark in (b"\xff\xc0", b"\xff\xc2") if mark in jpeg)
    return damaged(jpeg, at + 5, struct.pack(">HH", height, width))


GREY = Image.new("L", (64, 64), 90)
PNG = saved(Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64), np.uint8)), "PNG")

CONTENTS = {  # of one frame, made from its JPEG
    "empty": lambda jpeg: b"",
    "one byte": lambda jpeg: b"\xff",
    "web page": lambda jpeg: b"<!doctype html><html><body>404</body></html>",
    "text": lambda jpeg: "환자 1001".encode(),
    "zeros": lambda jpeg: bytes(5000),
    "noise": lambda jpeg: np.random.default_rng(1).bytes(5000),
    "start mark only": lambda jpeg: b"\xff\xd8\xff",
    "header only": lambda jpeg: jpeg[:300],
    "first half": lambda jpeg: jpeg[: len(jpeg) // 2],
    "without its end": lambda jpeg: jpeg[:-200],
    "second half": lambda jpeg: jpeg[len(jpeg) // 2 :],
    "damaged in the middle": lambda jpeg: damaged(jpeg, len(jpeg) // 2, b"\xff" * 60),
    "damaged near the end": lambda jpeg: damaged(jpeg, len(jpeg) - 400, b"\xff" * 60),
    "damaged tables": lambda jpeg: damaged(jpeg, 30, b"\xff" * 200),
    "claims 65,000 pixels": lambda jpeg: resized(jpeg, 65000, 65000),
    "claims no height": lambda jpeg: resized(jpeg, 0, 64),
    "claims twice its height": lambda jpeg: resized(jpeg, 8000, 64),
    "GIF": lambda jpeg: saved(GREY, "GIF"),
    "BMP": lambda jpeg: saved(GREY, "BMP"),
    "TIFF": lambda jpeg: saved(GREY, "TIFF"),
    "WebP": lambda jpeg: saved(GREY, "WEBP"),
    "JPEG 2000": lambda jpeg: saved(GREY, "JPEG2000"),
    "PDF": lambda jpeg: b"%PDF-1.7\n" + jpeg,
    "SVG": lambda jpeg: b'<svg xmlns="http://www.w3.org/2000/svg"/>',
    "DICOM": lambda jpeg: bytes(128) + b"DICM" + bytes(500),
    "gzip": lambda jpeg: gzip.compress(jpeg),
    "zip": lambda jpeg: b"PK\x03\x04" + jpeg,
    "PNG, bomb": lambda jpeg: png_of(60000, 60000),
    "PNG, long": lambda jpeg: png_of(20000, 20),
    "PNG, one pixel": lambda jpeg: saved(Image.new("L", (1, 1)), "PNG"),
    "PNG, no pixels": lambda jpeg: png_of(0, 0),
    "PNG, first half": lambda jpeg: PNG[: len(PNG) // 2],
    "PNG, wrong checksum": lambda jpeg: damaged(PNG, len(PNG) // 2, b"\x00\x01\x02\x03"),
    "PNG, impossible depth": lambda jpeg: png_of(64, 64, depth=7),
    "PNG, too few rows": lambda jpeg: png_of(64, 64, content=b"0" * 65 * 3),
}
FILES = {  # what is done with the frame's path
    "missing": lambda path: path.unlink(),
    "a folder": lambda path: (path.unlink(), path.mkdir()),
    "a link to nowhere": lambda path: (path.unlink(), path.symlink_to("nowhere.jpg")),
    "a link to itself": lambda path: (path.unlink(), path.symlink_to(path.name)),
    "there twice": lambda path: path.with_suffix(".png").write_bytes(PNG),
}


@pytest.fixture(scope="module")
def cohorts(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hostile")
    clean = write_cohort(folder / "clean", 100, seed=8, size=96)
    broken = write_cohort(folder / "broken", 100, seed=8, size=96)
    order = [f"{1001 + i}" for i in np.random.default_rng(3).permutation(100)[:40]]
    for number, (index, (name, change)) in enumerate(zip(order, [*CONTENTS.items(), *FILES.items()], strict=True)):
        path = sorted((broken / "images").glob(f"{index}*"))[number % 8]
        path.write_bytes(change(path.read_bytes())) if name in CONTENTS else change(path)
    for cohort in (clean, broken):
        status = main(f"predict --csv {cohort}/test.csv --images {cohort} --out {cohort}/output.csv --report {cohort}/report.html --require-all".split())
        assert status == (0 if cohort == clean else 3)
    return clean, broken, dict(zip(order, [*CONTENTS, *FILES]))


def test_sixty_predictions_are_the_same_to_the_bit(cohorts):
    clean, broken, ways = cohorts
    assert len(ways) == 40
    for name in ("output.csv", "probabilities.csv", "positions.csv"):
        whole, rest = (pd.read_csv(cohort / name, dtype=str) for cohort in (clean, broken))
        expected = whole[~whole.Index.isin(list(ways))].reset_index(drop=True)
        pd.testing.assert_frame_equal(rest, expected)
    assert len(pd.read_csv(broken / "output.csv")) == 60


def test_forty_reasons_name_file_and_mend(cohorts):
    _, broken, ways = cohorts
    errors = pd.read_csv(broken / "errors.csv", dtype=str)
    assert sorted(errors.Index) == sorted(ways)  # one row each
    for index, error in zip(errors.Index, errors.error):
        assert str(broken / "images") in error and f"{index}" in error and "; " in error, (ways[index], error)
    assert not list(broken.glob("*.partial"))


@pytest.mark.parametrize("index", ["../../etc/passwd", "=cmd|' /C calc'!A0", "@SUM(1)", "+1", "a\tb", "x" * 200])
def test_strange_index_reaches_no_file_name_and_no_formula(cohorts, tmp_path, index):
    clean, _, _ = cohorts
    pd.DataFrame({"Index": ["1001", index]}).to_csv(tmp_path / "t.csv", index=False)
    assert main(["predict", "--csv", str(tmp_path / "t.csv"), "--images", str(clean), "--out", str(tmp_path / "output.csv"), "--overlays", str(tmp_path / "o")]) == 3
    text = (tmp_path / "errors.csv").read_text()
    assert "is no plain name" in text and not any(cell[:1] in "=@+" for cell in pd.read_csv(tmp_path / "errors.csv", dtype=str).stack())
    assert {path.name.split("_")[0] for path in (tmp_path / "o").iterdir()} <= {"1001"} if (tmp_path / "o").exists() else True


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_unreadable_folder(cohorts, tmp_path, capsys):
    (tmp_path / "images").mkdir(mode=0)
    assert main(["check", "--csv", str(cohorts[0] / "test.csv"), "--images", str(tmp_path), "--unlabelled"]) == 1
    assert "images" in capsys.readouterr().err


@pytest.mark.parametrize("verb, kilobytes", [("predict", 2), ("predict", 60), ("simulate", 2)])
def test_full_disk(cohorts, tmp_path, verb, kilobytes):
    """No file may grow beyond a few kilobytes, as if the disk were full: one sentence, and no half of anything."""
    words = {
        "predict": ["--csv", cohorts[0] / "test.csv", "--images", cohorts[0], "--out", tmp_path / "output.csv", "--report", tmp_path / "report.html"],
        "simulate": [tmp_path / "out", "--patients", 2, "--size", 96, "--workers", 1],
    }[verb]
    limit = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (kilobytes * 1024,) * 2)
    words = [sys.executable, "-m", "coding_vessels", verb, *map(str, words)]
    done = subprocess.run(words, capture_output=True, text=True, preexec_fn=limit, env=os.environ | {"NUMBA_CACHE_DIR": str(cohorts[0] / "numba")})
    sentence = done.stderr.splitlines()[-1]
    assert done.returncode == 1 and str(tmp_path) in sentence and "the disk is full" in sentence, done.stderr
    assert {path.name for path in tmp_path.iterdir()} <= {"probabilities.csv", "positions.csv", "warnings.csv"}
