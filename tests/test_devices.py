"""Several devices and several processes train as one device does; a lost process is told of, and the training goes on."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

ROOT = Path(__file__).parents[1]

TRAINING = """
import os, sys
sys.path.insert(0, "tests")
import small_training
from coding_vessels import devices, training
from coding_vessels.preprocessing import Preprocessing
from coding_vessels.studies import read_cohort

data, out, count, address, number, moment, seed = sys.argv[1:]
small_training.prepare(moment)
try:
    if address: devices.join(address, int(number), 2, 60)
    studies, _ = read_cohort(data + "/groundtruth.csv", data)
    settings = training.Settings(preprocessing=Preprocessing(64), epochs=3, seed=int(seed), batch_size=2)
    training.train(studies, out, settings, resume=True, verbose=False, devices=int(count))
except (ValueError, OSError) as error:
    print(error, flush=True)
    os._exit(1)
"""


def start(out, count=1, address="", number=1, moment="never", seed=3):
    """Start a training of four patients of data/demo in a process of its own, which has two devices."""
    words = [sys.executable, "-c", TRAINING, *map(str, (ROOT / "data/demo", out, count, address, number, moment, seed))]
    environment = os.environ | {"KERAS_BACKEND": "jax", "XLA_FLAGS": "--xla_force_host_platform_device_count=2", "TF_CPP_MIN_LOG_LEVEL": "3"}
    return subprocess.Popen(words, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def together(out, moments=("never", "never"), seeds=(3, 3)):
    """Run two processes that train together; return the exit status and the words of each."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    both = [start(out, 1, address, number, moment, seed) for number, moment, seed in zip((1, 2), moments, seeds)]
    told = [one.communicate(timeout=150) for one in both]
    return [one.returncode for one in both], [words for words, _ in told], [errors for _, errors in told]


def state(out):
    """Return the history of a run and all its weights."""
    import keras

    return pd.read_csv(out / "history.csv"), keras.saving.load_model(out / "best.keras", compile=False).get_weights()


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """Return history and weights of a training on one device."""
    out = tmp_path_factory.mktemp("alone") / "run"
    one = start(out)
    assert one.wait(timeout=150) == 0, one.stderr.read()[-2000:]
    return state(out)


def assert_same(one, other):
    """Assert that two runs came to the same losses and weights; means over two rows let rounding grow to some 2e-4."""
    assert np.allclose(one[0], other[0], atol=1e-3, equal_nan=True) and len(one[0]) == 3
    assert max(np.abs(a - b).max() for a, b in zip(one[1], other[1])) < 1e-3


def test_two_devices_learn_as_one(alone, tmp_path):
    """The same batches, shared out, come to the same."""
    both = start(tmp_path / "run", count=2)
    assert both.wait(timeout=150) == 0, both.stderr.read()[-2000:]
    assert_same(alone, state(tmp_path / "run"))


def test_two_processes_learn_as_one_and_survive_the_loss_of_either(alone, tmp_path):
    """One is killed, later the other; each time both are started again, and come to the same."""
    out = tmp_path / "run"
    for killed, moments in enumerate((("never", "study 5"), ("study 6", "never"))):
        status, words, errors = together(out, moments)
        assert status[killed ^ 1] == -9 and status[killed] not in (0, -9), (status, words, errors)
        assert "start all of them again with --resume" in words[killed] or killed, (words, errors[killed][-2000:])
        assert not (out / "best.keras").exists()
    status, words, errors = together(out)
    assert status == [0, 0], (words, errors)
    assert_same(alone, state(out))
    assert sorted(path.name for path in out.iterdir()) == ["best.keras", "cache", "history.csv", "history.png", "settings.json", "state.npz"]


def test_processes_that_differ_do_not_begin(tmp_path):
    """Another seed on one machine: both say so, and nothing is trained."""
    status, words, errors = together(tmp_path / "run", seeds=(3, 4))
    assert status == [1, 1] and all("different" in said and "settings" in said for said in words), (words, errors)
    assert not (tmp_path / "run/history.csv").exists()


def test_a_batch_that_cannot_be_divided_is_refused(tmp_path, capsys):
    """TensorFlow has one device, two machines need an address, and JAX."""
    from coding_vessels.cli import main

    words = ["train", "--csv", "data/demo/groundtruth.csv", "--images", "data/demo", "--out", str(tmp_path / "run")]
    for more, said in ((["--devices", "2"], "several need KERAS_BACKEND=jax"), (["--process", "1/2"], "belong together"),
                       (["--join", "localhost:5000"], "belong together"), (["--join", "localhost:5000", "--process", "1/2"], "KERAS_BACKEND=jax")):
        assert main([*words, *more]) == 1
        assert said in capsys.readouterr().err and not (tmp_path / "run").exists()
