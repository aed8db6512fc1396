"""Runs that go on from others: fine-tuned ones and killed ones."""

import json
from dataclasses import replace

import pytest

from coding_vessels.batches import Augmentation
from coding_vessels.phantom import write_cohort
from coding_vessels.preprocessing import Preprocessing
from coding_vessels.studies import read_cohort


@pytest.fixture(scope="session")
def cohort(tmp_path_factory):
    """Return a folder with 20 simulated patients."""
    return write_cohort(tmp_path_factory.mktemp("cohort") / "c", 20, seed=5, size=96)


def test_fine_tuning_does_not_validate_on_patients_of_the_start_model(cohort, tmp_path, capsys):
    """Another seed, the same CSV: nobody changes sides, and a model that lost its record is refused."""
    from coding_vessels.cli import main

    words = ["train", "--csv", str(cohort / "groundtruth.csv"), "--images", str(cohort), "--epochs", "1"]
    assert main([*words, "--out", str(tmp_path / "0"), "--size", "64"]) == 0
    for run, seed in ((1, "1"), (2, "2")):
        start = str(tmp_path / f"{run - 1}/best.keras")
        assert main([*words, "--out", str(tmp_path / str(run)), "--seed", seed, "--start", start]) == 0
    records = [json.loads((tmp_path / f"{run}/settings.json").read_text()) for run in range(3)]
    for record in records[1:]:
        assert sorted(record["validation"]) == sorted(records[0]["validation"])
        assert sorted(record["train"]) == sorted(record["trained before"]) == sorted(records[0]["train"])
    (tmp_path / "2/best.keras").rename(tmp_path / "best.keras")
    assert main([*words, "--out", str(tmp_path / "3"), "--start", str(tmp_path / "best.keras")]) == 1
    assert "nobody knows which patients" in capsys.readouterr().err and not (tmp_path / "3").exists()


@pytest.mark.parametrize("preset", ["kium", "report"])
def test_fine_tuning_refuses_another_network(cohort, tmp_path, capsys, preset):
    """`--preset kium --start shipped` would train our small network and record ResNet50."""
    from coding_vessels.cli import main

    words = ["train", "--csv", str(cohort / "groundtruth.csv"), "--images", str(cohort), "--out", str(tmp_path / "run")]
    assert main([*words, "--preset", preset, "--start", "shipped", "--epochs", "1"]) == 1
    assert "is another network than" in capsys.readouterr().err and not (tmp_path / "run").exists()
