"""Reads an archive of simulated patients in three ways and compares the files.

    python tests/read_archive.py [--studies 20000] [--model FILE]

Twelve patients are linked until there are enough. One process reads 200 of them, then all; another reads all, is killed half way and
goes on with --resume; then two workers of Ray read all, and one of them is killed half way. Files must be equal to the byte, and the
first process's memory must hardly grow. Without a model a small network with random weights answers, for it is the reading that is tried.
"""

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import keras
import pandas as pd

from coding_vessels.engines import export_model
from coding_vessels.model import vessel_model
from coding_vessels.phantom import write_cohort
from coding_vessels.preprocessing import Preprocessing
from coding_vessels.studies import read_cohort

TABLES = "output", "probabilities", "positions", "warnings"


def link_studies(folder, studies, count):
    """Return a cohort of `count` studies, linked from a few."""
    (folder / str(count)).mkdir()
    indices = []
    for number in range(count):
        copy, own = divmod(number, len(studies))
        indices.append(str(10_000 * (copy + 1) + int(studies[own].index)))
        for path in studies[own].frames:
            os.link(path, folder / str(count) / path.name.replace(studies[own].index, indices[-1], 1))
    pd.DataFrame({"Index": indices}).to_csv(folder / str(count) / "test.csv", index=False)
    return folder / str(count)


def begin(cohort, model, out, *words):
    """Start `predict` in a process of its own; `model` are words, too."""
    out.mkdir(exist_ok=True)
    command = ["-m", "coding_vessels", "predict", "--csv", cohort / "test.csv", "--images", cohort, "--out", out / "output.csv"]
    with open(out / "log", "ab") as log:
        return subprocess.Popen(list(map(str, [sys.executable, *command, *model, *words])), stdout=log, stderr=log)


def end(process, out):
    """Wait for a process and return its largest memory in MB, as Linux tells it."""
    memory, status = 0, Path(f"/proc/{process.pid}/status")
    while process.poll() is None:
        told = [line.split()[1] for line in status.read_text().splitlines() if line.startswith("VmHWM")]
        memory = int(told[0]) / 1000 if told else memory
        time.sleep(0.1)
    if process.returncode: raise RuntimeError((out / "log").read_text()[-1000:])
    return memory


def rows_read(out):
    """Return how many studies have been read so far."""
    return max((file.read_bytes().count(b"\n") for file in out.rglob("rows")), default=0)


def half_way(process, out, count):
    """Wait until half of the studies are read."""
    while rows_read(out) < count / 2:
        if process.poll() is not None: raise RuntimeError((out / "log").read_text()[-1000:])
        time.sleep(0.5)


def kill_a_worker():
    """Kill one of Ray's workers."""
    found = subprocess.run(["pgrep", "-f", "^ray::.*Map"], capture_output=True, text=True).stdout.split()
    os.kill(int(found[0]), signal.SIGKILL)


def small_model(file):
    """Return the words that name a small network with random weights, exported, which flags two places of a study or so."""
    keras.utils.set_random_seed(0)
    vessel_model(Preprocessing(64), without="closer look").save(file)
    return "--model", export_model(file), "--threshold", 0.0322


def compare(folder, count, model):
    """Read 200 studies, then `count` of them in three ways; return seconds and memory of each."""
    made = write_cohort(folder / "patients", 12, seed=4, size=256)
    studies, _ = read_cohort(made / "test.csv", made, labelled=False)
    model = ("--model", model) if model else small_model(folder / "small.keras")
    small, whole = (link_studies(folder, studies, number) for number in (200, count))
    rows = {}

    def timed(name, cohort, *words, middle=None):
        start, process = time.monotonic(), begin(cohort, model, folder / name, *words)
        if middle: middle(process)
        rows[name] = (memory := end(process, folder / name), time.monotonic() - start)
        print(f"{name}: {rows[name][1]:.0f} s, {memory:.0f} MB", flush=True)

    def kill_and_resume(process):
        half_way(process, folder / "resumed", count)
        process.kill()
        process.wait()

    timed("200 studies", small)
    timed("all", whole)
    process = begin(whole, model, folder / "resumed")
    kill_and_resume(process)
    timed("resumed", whole, "--resume")
    ray = "--ray", "local", "--workers", "2"
    timed("Ray", whole, *ray, middle=lambda process: (half_way(process, folder / "Ray", count), kill_a_worker()))
    for table in TABLES:
        contents = {(folder / name / f"{table}.csv").read_bytes() for name in ("all", "resumed", "Ray") if (folder / name / f"{table}.csv").exists()}
        print(f"{table}.csv: {len(contents)} version of three files, {sum(map(len, contents)):,} bytes")
        assert len(contents) <= 1
    return rows


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--studies", type=int, default=20_000)
    parser.add_argument("--model", type=Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        rows = compare(Path(folder), args.studies, args.model)
    (small, _), (memory, seconds) = rows["200 studies"], rows["all"]
    print(f"memory for {args.studies:,} studies over that for 200: {memory / small:.2f}")
    print(f"Ray, a worker killed, over one process: {rows['Ray'][1] / seconds:.2f} of its time")
