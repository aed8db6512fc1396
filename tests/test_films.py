"""Films: simulated, written as X-ray angiography objects, imported; the frame that the import chooses is scored."""

import hashlib
import json

import numpy as np
import pandas as pd
import pytest

from coding_vessels.anatomy import VIEWS
from coding_vessels.cli import main
from coding_vessels.dicom import best_number, read_dicom
from coding_vessels.phantom import PRESETS, draw_films, draw_phantom, write_cohort
from coding_vessels.studies import read_frame


def test_single_frames_stay_as_they_were():
    """What was trained on them depends on it; the means are those of the frames that the shipped weights learned from."""
    means = [frame.mean() for frame in draw_phantom(3, size=256).frames]
    assert np.allclose(means, [163.21, 182.21, 190.46, 202.69, 197.37, 180.69, 201.14, 187.88], atol=0.02)
    learned_from = repr(PRESETS["training"]).encode()
    assert hashlib.sha256(learned_from).hexdigest().startswith("63dfbcb3dccf6e6fa319b4f874b01ebf")


def test_simulated_films_are_imported(tmp_path, capsys):
    for workers in (1, 2):
        words = f"simulate {tmp_path}/films{workers} --patients 2 --seed 5 --size 128 --film --workers {workers}"
        assert main(words.split()) == 0
    one, two = tmp_path / "films1", tmp_path / "films2"
    files = sorted(path.relative_to(one) for path in one.rglob("*") if path.is_file())
    assert len(files) == 2 * 8 + 2 + 1
    for file in files:
        assert (one / file).read_bytes() == (two / file).read_bytes(), file
    assert main(f"import-dicom {one}/dicom --out {tmp_path}/cohort --key {tmp_path}/key.csv".split()) == 0
    key = pd.read_csv(tmp_path / "key.csv", dtype=str)
    assert sorted(key.view) == sorted(VIEWS * 2)
    for row in key.to_dict("records"):
        film = json.loads((one / f"truth/{row['patient']}.json").read_text())["films"][row["view"]]
        _, frames = read_dicom(one / "dicom" / row["file"])
        chosen = read_frame(tmp_path / f"cohort/images/{row['Index']}{row['view']}.png")
        (number,) = [n for n, frame in enumerate(frames) if np.array_equal(frame, chosen)]
        assert abs(number - film["best"]) <= 1, (row["patient"], row["view"])


@pytest.mark.parametrize("preset", ["kium", "shifted"])
def test_veins_and_late_frames_do_not_win(preset):
    population, scanner = PRESETS[preset]
    films = [film for seed in (1, 2) for film in draw_films([9, seed], size=200, population=population, scanner=scanner)]
    right = [abs(best_number(film.frames) - film.best) <= 1 for film in films]
    assert np.mean(right) >= 0.9


def test_wrong_words(tmp_path):
    with pytest.raises(ValueError, match="film is 3; use 5 frames or more"):
        write_cohort(tmp_path / "x", 1, film=3)
    with pytest.raises(ValueError, match="masks belong to single frames"):
        write_cohort(tmp_path / "x", 1, film=15, masks=True)
    assert not list(tmp_path.iterdir())
