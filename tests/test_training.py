"""Runs that go on from others: fine-tuned ones and killed ones."""

import json
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest

from coding_vessels.phantom import write_cohort
from coding_vessels.studies import Study
from coding_vessels.training import Settings, split_patients

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="session")
def cohort(tmp_path_factory):
    """Return a folder with 20 simulated patients."""
    return write_cohort(tmp_path_factory.mktemp("cohort") / "c", 20, seed=5, size=96)


def test_fine_tuning_does_not_validate_on_patients_of_the_start_model(cohort, tmp_path, capsys, monkeypatch):
    """Another seed, the same CSV: nobody changes sides, and a model that lost its record is refused."""
    from small_training import small_network

    from coding_vessels import training
    from coding_vessels.cli import main

    monkeypatch.setattr(training, "build_model", small_network)                 # who learns is what counts, not what
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
sys.path.insert(0, "tests")
import small_training
from coding_vessels import training
from coding_vessels.preprocessing import Preprocessing
from coding_vessels.studies import read_cohort

data, out, moment = sys.argv[1:]
rename, renamed = os.replace, []

def replace(old, new):
    "Rename a file of the run; die before or after the one whose number was asked for."
    if os.path.dirname(new) != out: return rename(old, new)
    renamed.append(new)
    if moment == f"before {len(renamed)}": os._exit(9)
    rename(old, new)
    if moment == f"after {len(renamed)}": os._exit(9)

os.replace = replace
small_training.prepare(moment)
if moment == "in calibration": training.calibrate = lambda *parts: os._exit(9)
studies, _ = read_cohort(data + "/groundtruth.csv", data)
training.train(studies, out, training.Settings(preprocessing=Preprocessing(64), epochs=4, seed=3), resume=True, verbose=0)
print(len(renamed), len(small_training.loaded))
"""


def training(out, moment="never"):
    """Train a network for four epochs on the five patients of data/demo; return exit status, written files and read studies."""
    words = [sys.executable, "-c", TRAINING, str(ROOT / "data/demo"), str(out), moment]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode == 0) == (moment == "never"), done.stderr[-2000:]
    return done.returncode, *map(int, done.stdout.split()[-2:])


def test_a_run_killed_four_times_ends_as_if_nothing_had_happened(tmp_path):
    """SIGKILL within an epoch, twice, and death beside a write, all left to chance, and death in the calibration."""
    import keras

    whole, run = tmp_path / "whole", tmp_path / "run"
    assert training(whole) == (0, 15, 20)                          # settings, 4 x state, history and curve, best, settings; 4 x 5 studies
    moments = [f"study {random.randint(6, 9)}", f"study {random.randint(6, 9)}", f"{random.choice(['before', 'after'])} {random.randint(1, 4)}", "in calibration"]
    print(moments)
    assert [training(run, moment)[0] for moment in moments] == [-9, -9, 9, 9]
    assert not (run / "best.keras").exists()                       # nothing that `predict` could take
    assert pd.read_csv(run / "history.csv").epoch.tolist() == [0, 1, 2, 3]
    assert training(run) == (0, 5, 0)                              # state, history, curve, best, settings; no study is read again
    histories = [pd.read_csv(path / "history.csv") for path in (whole, run)]
    assert np.allclose(*histories, atol=1e-4, equal_nan=True) and histories[0].shape == histories[1].shape
    weights = [keras.saving.load_model(path / "best.keras", compile=False).get_weights() for path in (whole, run)]
    assert max(np.abs(a - b).max() for a, b in zip(*weights)) < 1e-4
    assert sorted(path.name for path in run.iterdir()) == ["best.keras", "cache", "history.csv", "history.png", "settings.json", "state.npz"]
    assert (run / "settings.json").read_text() == (whole / "settings.json").read_text()


def small_network(settings):
    """Return a network that does nothing but take part."""
    import keras
    from keras import layers

    frames = keras.Input((8, 64, 64), dtype="uint8")
    scores = layers.Dense(22, name="scores")(layers.Flatten()(layers.Rescaling(1 / 255)(frames)))
    return keras.Model(frames, {"labels": layers.Activation("sigmoid", name="labels")(scores)})


def test_train_takes_another_cohort_and_goes_on_with_more_epochs(cohort, tmp_path, capsys, monkeypatch):
    """--validation, --learning-rate, --patience; then --resume with more epochs than before; and a patient in both cohorts."""
    from coding_vessels import training
    from coding_vessels.cli import main

    monkeypatch.setattr(training, "build_model", small_network)
    table = pd.read_csv(cohort / "groundtruth.csv")
    table[:14].to_csv(tmp_path / "train.csv", index=False)
    table[14:].to_csv(tmp_path / "valid.csv", index=False)
    words = ["train", "--csv", str(tmp_path / "train.csv"), "--images", str(cohort), "--out", str(tmp_path / "run"), "--size", "64"]
    words += ["--learning-rate", "0.01", "--patience", "9", "--validation", str(tmp_path / "valid.csv")]
    assert main([*words, "--epochs", "2"]) == 0
    told = capsys.readouterr().out
    assert "epoch 2/2: loss" in told and "learning rate" in told and "left" in told
    assert main([*words, "--epochs", "3", "--resume"]) == 0
    record, history = json.loads((tmp_path / "run/settings.json").read_text()), pd.read_csv(tmp_path / "run/history.csv")
    assert (len(record["train"]), len(record["validation"])) == (14, 6) and record["finished"]
    assert [record["settings"][name] for name in ("learning_rate", "patience", "epochs")] == [0.01, 9, 3]
    assert history.epoch.tolist() == [0, 1, 2] and 0 < history.learning_rate[0] <= 0.01
    assert main([*words, "--epochs", "2", "--resume"]) == 1
    assert "was begun with 3 epochs; resume with as many or more" in capsys.readouterr().err
    table[12:].to_csv(tmp_path / "valid.csv", index=False)
    words[words.index("--out") + 1] = str(tmp_path / "other")
    assert main([*words, "--epochs", "1"]) == 1
    both = ", ".join(map(str, table.Index[12:14]))
    assert f"{both} would both train and validate" in capsys.readouterr().err and not (tmp_path / "other").exists()


def test_precision_and_accumulation_at_the_shell(cohort, tmp_path, capsys, monkeypatch):
    """What was asked for stands in the settings; without --precision, what suits the device, which is said."""
    from coding_vessels import training
    from coding_vessels.cli import main

    monkeypatch.setattr(training, "build_model", small_network)
    words = ["train", "--csv", str(cohort / "groundtruth.csv"), "--images", str(cohort), "--size", "64", "--epochs", "1"]
    assert main([*words, "--out", str(tmp_path / "a"), "--precision", "bfloat16", "--accumulate", "4"]) == 0
    monkeypatch.setattr(training, "find_device", lambda: ("Tesla T4", "float16"))
    assert main([*words, "--out", str(tmp_path / "b")]) == 0
    assert "17 patients to train, 3 to validate; on Tesla T4, in float16" in capsys.readouterr().out
    records = [json.loads((tmp_path / run / "settings.json").read_text())["settings"] for run in "ab"]
    assert [(record["precision"], record["accumulate"]) for record in records] == [("bfloat16", 4), ("float16", 1)]


def test_weights_from_a_file(cohort, tmp_path, capsys, monkeypatch):
    """The recipe of 2023 with local weights; our small network has no use for them."""
    from coding_vessels import training
    from coding_vessels.cli import main

    monkeypatch.setattr(training, "build_model", small_network)
    words = ["train", "--csv", str(cohort / "groundtruth.csv"), "--images", str(cohort), "--size", "64", "--epochs", "1"]
    words += ["--weights", "resnet.h5", "--out", str(tmp_path / "run")]
    assert main(words) == 1
    assert "weights are for ResNet50, not for the backbone 'small'" in capsys.readouterr().err
    assert main([*words, "--preset", "report-2023", "--start", "shipped"]) == 1
    assert "--weights and --start exclude each other" in capsys.readouterr().err
    assert main([*words, "--preset", "report-2023", "--learning-rate", "0"]) == 1
    assert "learning_rate is 0.0; it must be above 0" in capsys.readouterr().err
    assert main([*words, "--preset", "report-2023"]) == 0
    settings = json.loads((tmp_path / "run/settings.json").read_text())["settings"]
    assert [settings[name] for name in ("recipe", "weights", "learning_rate")] == ["2023", "resnet.h5", 1e-5]
    assert main([*words, "--preset", "report-2023", "--weights", "none", "--out", str(tmp_path / "random")]) == 0
    assert json.loads((tmp_path / "random/settings.json").read_text())["settings"]["weights"] is None


def test_extra_gpu_brings_cuda():
    """Plain `tensorflow` finds no GPU."""
    program = ("import runpy, setuptools; setuptools.setup = lambda **words: print(words['extras_require']['gpu']); "
               "runpy.run_path('setup.py')")
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert "tensorflow[and-cuda]" in done.stdout


def test_too_little_memory_is_one_sentence_that_names_batch_size(cohort, tmp_path, capsys, monkeypatch):
    """Room for three studies: of four, two go at a time; five, half of ten, cannot be halved, so --resume and --batch-size 3 train."""
    import tensorflow as tf

    from coding_vessels import training
    from coding_vessels.cli import main

    draw = training.training_batches

    def exhaust(model, studies, settings, *parts):
        if settings.batch_size > 3:
            raise tf.errors.ResourceExhaustedError(None, None, "OOM when allocating tensor with shape[4,64,64]")
        return draw(model, studies, settings, *parts)

    monkeypatch.setattr(training, "build_model", small_network)
    monkeypatch.setattr(training, "training_batches", exhaust)
    words = ["train", "--csv", str(cohort / "groundtruth.csv"), "--images", str(cohort), "--out", str(tmp_path / "run"), "--size", "64"]
    assert main([*words[:-3], str(tmp_path / "halved"), *words[-2:], "--epochs", "1", "--batch-size", "4"]) == 0
    assert "now 2 at a time, 2 times to a step" in capsys.readouterr().out
    assert json.loads((tmp_path / "halved/settings.json").read_text())["fits"] == {"batch_size": 2, "accumulate": 2}
    assert main([*words, "--epochs", "1", "--batch-size", "10"]) == 1
    message = capsys.readouterr().err.strip().splitlines()[-1]
    assert message == ("coding_vessels train: a step with 5 studies of 64 pixels does not fit into memory; "
                       "go on with --resume (resume) and a --batch-size (batch_size) below 5.")
    assert main([*words, "--epochs", "1", "--batch-size", "3", "--resume"]) == 0
    record = json.loads((tmp_path / "run/settings.json").read_text())
    assert record["settings"]["batch_size"] == 3 and "fits" not in record        # those of ten are forgotten


def test_interrupted_names_resume(tmp_path, capsys, monkeypatch):
    from coding_vessels import training
    from coding_vessels.cli import main

    def interrupt(*parts, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(training, "train", interrupt)
    data = ROOT / "data/demo"
    assert main(["train", "--csv", str(data / "groundtruth.csv"), "--images", str(data), "--out", str(tmp_path / "run")]) == 130
    assert "interrupted; the same command with --resume goes on" in capsys.readouterr().err


BOTH = """
import sys
import keras
import numpy as np
from keras import layers
from coding_vessels import training
from coding_vessels.preprocessing import Preprocessing
from coding_vessels.studies import read_cohort

def network(settings):
    "A small network with the same first weights whatever the backend."
    frames = keras.Input((8, 64, 64), dtype="uint8")
    x = layers.Dense(16, "relu")(layers.Flatten()(layers.Rescaling(1 / 255)(frames)))
    model = keras.Model(frames, {"labels": layers.Activation("sigmoid", name="labels")(layers.Dense(22, name="scores")(x))})
    rng = np.random.default_rng(0)
    model.set_weights([rng.normal(0, 0.01, weight.shape) for weight in model.get_weights()])
    return model

training.build_model = network
studies, _ = read_cohort(sys.argv[1] + "/groundtruth.csv", sys.argv[1])
settings = training.Settings(preprocessing=Preprocessing(64), epochs=2, batch_size=4, seed=3)
training.train(studies, sys.argv[2], settings)
"""


def test_both_backends_learn_alike(cohort, tmp_path):
    """The same seed: losses and weights of TensorFlow and JAX agree to a thousandth; and each says what it computes on."""
    pytest.importorskip("jax")
    import keras

    told = {}
    for backend in ("tensorflow", "jax"):
        words = [sys.executable, "-c", BOTH, str(cohort), str(tmp_path / backend)]
        done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, env=os.environ | {"KERAS_BACKEND": backend})
        assert done.returncode == 0, done.stderr[-2000:]
        told[backend] = done.stdout
    assert "TensorFlow finds no GPU" in told["tensorflow"] and "JAX finds no GPU" in told["jax"]
    histories = [pd.read_csv(tmp_path / backend / "history.csv") for backend in told]
    assert np.allclose(*histories, rtol=1e-3) and len(histories[0]) == 2
    weights = [keras.saving.load_model(tmp_path / backend / "best.keras", compile=False).get_weights() for backend in told]
    assert max(np.abs(a - b).max() for a, b in zip(*weights)) < 1e-3


def test_leading_zeros_do_not_hide_a_patient(tmp_path):
    """1001 of the start run and 01001 of the new table are one patient: on the side where it was."""
    record = {"train": ["1001", "1002"], "validation": ["1003"]}
    (tmp_path / "settings.json").write_text(json.dumps(record))
    labels = np.zeros(22, np.uint8)
    studies = [Study(index, (None,) * 8, labels) for index in ("01001", "1002", "001003", *map(str, range(2000, 2020)))]
    trained, validated = split_patients(studies, Settings(start=str(tmp_path / "best.keras")))
    assert {"01001", "1002"} <= {study.index for study in trained}
    assert "001003" in {study.index for study in validated}


def readable_network(settings):
    """Return a small network that can also be read back for prediction."""
    from dataclasses import asdict

    import keras
    from keras import layers

    from coding_vessels.model import Calibration, FrameInput, NoisyOr

    frames = keras.Input((8, 64, 64), dtype="uint8", name="frames")
    scores = layers.Dense(21, name="scores")(layers.Flatten()(FrameInput(asdict(settings.preprocessing))(frames)))
    return keras.Model(frames, {"labels": NoisyOr(name="labels")(Calibration(name="calibration")(scores))})


def test_folds_predict_whom_they_have_not_seen(cohort, tmp_path, capsys, monkeypatch):
    """Three folds; each patient once; what they say can be scored, and all models predict together."""
    from coding_vessels import training
    from coding_vessels.cli import main

    monkeypatch.setattr(training, "build_model", readable_network)
    out, table = tmp_path / "run", cohort / "groundtruth.csv"
    words = ["train", "--csv", str(table), "--images", str(cohort), "--out", str(out), "--size", "64", "--epochs", "1"]
    assert main([*words, "--folds", "1"]) == 1 and "--folds needs 2 or more" in capsys.readouterr().err
    assert main([*words, "--folds", "3"]) == 0
    assert "--model" in capsys.readouterr().out
    assert main([*words, "--folds", "3"]) == 1 and "choose another folder" in capsys.readouterr().err
    trained = [json.loads((out / f"fold{k}/settings.json").read_text()) for k in (1, 2, 3)]
    met = [{*record["train"], *record["validation"]} for record in trained]
    everyone = set(pd.read_csv(table, dtype=str)["Index"])
    assert set.union(*met) == everyone and not set.intersection(*met)
    assert pd.read_csv(out / "output.csv", dtype=str)["Index"].tolist() == pd.read_csv(table, dtype=str)["Index"].tolist()
    assert main(["evaluate", "--truth", str(table), "--output", str(out / "output.csv")]) == 0
    models = [word for k in (1, 2) for word in ("--model", str(out / f"fold{k}/best.keras"))]
    reading = ["predict", "--csv", str(table), "--images", str(cohort), "--engine", "keras"]
    both = [pd.read_csv(run(reading, name, chosen)) for name, chosen in (("both", models), ("one", models[:2]), ("two", models[2:]))]
    assert np.allclose(both[0].iloc[:, 1:], (both[1].iloc[:, 1:] + both[2].iloc[:, 1:]) / 2, atol=1e-6)
    assert not np.allclose(both[1].iloc[:, 1:], both[2].iloc[:, 1:], atol=1e-3)


def test_one_patient_under_two_numbers_and_patients_who_lack_views(cohort, tmp_path, capsys, monkeypatch):
    """A second export of a patient stays with the first; who lacks a view is learned from; who has no frame of use is left out."""
    from coding_vessels import training
    from coding_vessels.cli import main

    monkeypatch.setattr(training, "build_model", readable_network)
    mixed, table = tmp_path / "c", pd.read_csv(cohort / "groundtruth.csv", dtype=str)
    shutil.copytree(cohort, mixed)
    for path in (cohort / "images").glob("1003*"):
        shutil.copy(path, mixed / "images" / path.name.replace("1003", "2003"))
    (mixed / "images/1005LI-A.jpg").unlink()
    for path in (mixed / "images").glob("1006*"):
        cv2.imwrite(str(path), np.zeros((96, 96), np.uint8))
    pd.concat([table, table[table.Index == "1003"].assign(Index="2003")]).to_csv(mixed / "groundtruth.csv", index=False)
    words = ["--csv", str(mixed / "groundtruth.csv"), "--images", str(mixed)]
    assert main(["check", *words]) == 1
    told = capsys.readouterr().out
    assert "it is the same picture as 1003LI-A.jpg" in told and "it is of no use: nearly empty" in told
    assert "20 usable studies, 1 of them without all views (1005), 17 problems" in told
    small = ["--size", "64", "--epochs", "1"]
    assert main(["train", *words, "--out", str(tmp_path / "run"), *small]) == 3
    assert "without all views (1005)" in capsys.readouterr().out
    record = json.loads((tmp_path / "run/settings.json").read_text())
    assert {*table.Index, "2003"} - {"1006"} == {*record["train"], *record["validation"]}
    assert all(("1003" in record[part]) == ("2003" in record[part]) for part in ("train", "validation"))
    assert {*pd.read_csv(tmp_path / "run/errors.csv", dtype=str).Index} == {"1006"}
    assert main(["train", *words, "--out", str(tmp_path / "folds"), *small, "--folds", "2"]) == 3
    assert {*pd.read_csv(tmp_path / "folds/output.csv", dtype=str).Index} == {*table.Index, "2003"} - {"1006"}
    for record in (json.loads((tmp_path / f"folds/fold{number}/settings.json").read_text()) for number in (1, 2)):
        assert all(("1003" in record[part]) == ("2003" in record[part]) for part in ("train", "validation"))


def test_patients_of_whom_nobody_said_where(cohort, tmp_path, capsys, monkeypatch):
    """Empty locations from check to train, page and scores; the figures of patients are those of the full table."""
    from coding_vessels import training
    from coding_vessels.anatomy import LOCATIONS
    from coding_vessels.cli import main

    monkeypatch.setattr(training, "build_model", readable_network)
    table, files = pd.read_csv(cohort / "groundtruth.csv", dtype=str), ["--images", str(cohort)]
    sick = table.index[table.Aneurysm == "1"][::2]
    table.loc[sick, list(LOCATIONS)] = ""
    truth = tmp_path / "groundtruth.csv"
    table.to_csv(truth, index=False)
    assert main(["check", "--csv", str(truth), *files]) == 0
    said = f"20 usable studies, {len(sick)} of them with an aneurysm at an unknown location ({', '.join(table.Index[sick[:5]])}"
    assert said in capsys.readouterr().out
    assert main(["train", "--csv", str(truth), *files, "--out", str(tmp_path / "run"), "--size", "64", "--epochs", "1"]) == 0
    assert f"to validate, {len(sick)} of them with an aneurysm at an unknown location (" in capsys.readouterr().out
    history = pd.read_csv(tmp_path / "run/history.csv")
    assert np.isfinite(history[["loss", "val_loss"]]).all(axis=None)
    out, page = tmp_path / "output.csv", tmp_path / "page.html"
    reading = ["--csv", str(truth), *files, "--model", str(tmp_path / "run/best.keras"), "--engine", "keras", "--out", str(out)]
    assert main(["predict", *reading, "--report", str(page), "--truth", str(truth)]) == 0
    text = page.read_text(encoding="utf-8")
    assert f"{21 * len(sick)} locations are not known and count nowhere." in text
    assert text.count("location not known") == len(sick) + 1 and text.count(">not known<") == 21 * len(sick)    # and in Korean
    records = []
    for name in (truth, cohort / "groundtruth.csv"):
        assert main(["evaluate", "--truth", str(name), "--output", str(out), "--out", str(tmp_path / name.parent.name)]) == 0
        records.append(json.loads((tmp_path / name.parent.name / "scores.json").read_text()))
    assert [record["not known"] for record in records] == [21 * len(sick), 0]
    one, other = (record["figures"] for record in records)
    assert one["AUROC"] == other["AUROC"] and one["specificity"] == other["specificity"]
    assert f"{21 * len(sick)} locations are not known" in capsys.readouterr().out


def run(reading, name, chosen):
    """Predict with the chosen models and return where the probabilities are."""
    import tempfile

    from coding_vessels.cli import main

    folder = Path(tempfile.mkdtemp()) / name
    assert main([*reading, *chosen, "--out", str(folder / "output.csv")]) == 0
    return folder / "probabilities.csv"


def test_two_trainings_do_not_share_a_folder(cohort, tmp_path, capsys):
    from coding_vessels.files import locked

    words = ["train", "--csv", str(cohort / "groundtruth.csv"), "--images", str(cohort), "--out", str(tmp_path / "run")]
    program = f"import sys; from coding_vessels.cli import main; sys.exit(main({[*words, '--size', '64', '--epochs', '1']!r}))"
    with locked(tmp_path / "run" / "run"):
        done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1 and "another process is writing" in done.stderr
