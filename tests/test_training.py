"""Runs that go on from others: fine-tuned ones and killed ones."""

import json
import random
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from coding_vessels.phantom import write_cohort

ROOT = Path(__file__).parents[1]


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


TRAINING = """
import os, sys
from coding_vessels import training
from coding_vessels.preprocessing import Preprocessing
from coding_vessels.studies import read_cohort

cohort, out, moment = sys.argv[1:]
rename, renamed = os.replace, []

def replace(old, new):
    "Rename a file of the run; die before or after the one whose number was asked for."
    if os.path.dirname(new) != out: return rename(old, new)
    renamed.append(new)
    if moment == f"before {len(renamed)}": os._exit(9)
    rename(old, new)
    if moment == f"after {len(renamed)}": os._exit(9)

os.replace = replace
if moment == "in calibration": training.calibrate = lambda *parts: os._exit(9)
studies, _ = read_cohort(cohort + "/groundtruth.csv", cohort)
training.train(studies, out, training.Settings(preprocessing=Preprocessing(64), epochs=4, seed=3), resume=True, verbose=0)
print(len(renamed))
"""


def training(cohort, out, moment="never"):
    """Return a process that trains a small network for four epochs."""
    words = [sys.executable, "-c", TRAINING, str(cohort), str(out), moment]
    return subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finished(process):
    output, errors = process.communicate()
    assert process.returncode == 0, errors[-2000:]
    return output


def assert_same_run(one, other):
    """Same history and same weights, and nothing is left of the state."""
    from coding_vessels.model import load_model

    histories = [pd.read_csv(run / "history.csv") for run in (one, other)]
    assert [history.epoch.tolist() for history in histories] == [[0, 1, 2, 3]] * 2
    assert np.allclose(*histories, atol=1e-4)
    weights = [load_model(run / "best.keras").get_weights() for run in (one, other)]
    assert max(np.abs(a - b).max() for a, b in zip(*weights)) < 1e-4
    assert sorted(path.name for path in other.iterdir()) == ["best.keras", "cache", "history.csv", "settings.json"]
    assert json.loads((other / "settings.json").read_text()) == json.loads((one / "settings.json").read_text())


def test_a_run_killed_three_times_ends_as_if_nothing_had_happened(cohort, tmp_path):
    """SIGKILL at a moment left to chance, death beside a write left to chance, and death in the calibration."""
    finished(training(cohort, tmp_path / "whole"))
    run, epochs, pause = tmp_path / "run", random.randint(1, 2), random.uniform(0, 2)
    process = training(cohort, run)
    while process.poll() is None and not ((run / "history.csv").exists() and len(pd.read_csv(run / "history.csv")) >= epochs):
        time.sleep(0.02)
    time.sleep(pause)
    process.kill()
    process.communicate()
    print(f"killed {pause:.2f} s after epoch {epochs}: {sorted(path.name for path in run.iterdir())}")
    if not (run / "best.keras").exists():                                     # else it was done before the pause was over
        moment = f"{random.choice(['before', 'after'])} {random.randint(1, 4)}"
        process = training(cohort, run, moment)
        print(f"died {moment}: {process.communicate()[1][-2000:]}")
        assert process.returncode == 9
        process = training(cohort, run, "in calibration")
        process.communicate()
        assert process.returncode == 9 and not (run / "best.keras").exists()  # nothing that `predict` could take
        assert pd.read_csv(run / "history.csv").epoch.tolist() == [0, 1, 2, 3]
        assert int(finished(training(cohort, run)).split()[-1]) == 4          # state, history, best.keras, settings: no epoch again
    assert_same_run(tmp_path / "whole", run)


def test_interrupted_names_resume(cohort, tmp_path, capsys, monkeypatch):
    from coding_vessels import training
    from coding_vessels.cli import main

    def interrupt(*parts, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(training, "train", interrupt)
    assert main(["train", "--csv", str(cohort / "groundtruth.csv"), "--images", str(cohort), "--out", str(tmp_path / "run")]) == 130
    assert "interrupted; the same command with --resume goes on" in capsys.readouterr().err
