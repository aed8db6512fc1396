"""What `predict` writes is all old or all new, whenever it is killed, and a killed call goes on where it stopped."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from coding_vessels.phantom import write_cohort

PROGRAM = """
import os, signal, sys, time
from pathlib import Path
import numpy as np
import pandas as pd
from coding_vessels import cli, engines, files, prediction, report, studies
from coding_vessels.preprocessing import Preprocessing

def answer(frames):
    "Answer at once, differently for each study."
    value = frames.mean(axis=(1, 2)) / 255
    return {"labels": np.resize(value, 22).astype(np.float32), "maps": np.resize(value, (8, 4, 4, 13)).astype(np.float32)}

engine = engines.Engine("keras", Path("small.keras"), "float32", "0" * 64, Preprocessing(64), np.full(21, 0.5), answer)
engines.load_engine = lambda *words: engine

def die_at(moment, after, *names):
    "Die at the call of that number to functions that write, counted from the call of `after` on."
    calls, counting = [], []
    def counted(call, begins=False):
        def own(*parts, **options):
            if begins: counting.append(True)
            if counting: calls.append(call)
            if len(calls) == moment: os.kill(os.getpid(), signal.SIGKILL)
            return call(*parts, **options)
        return own
    for module, name in names: setattr(module, name, counted(getattr(module, name)))
    setattr(prediction, after, counted(getattr(prediction, after), True))
    return calls

WRITES = [(os, "mkdir"), (os, "replace"), (os, "unlink"), (os, "rmdir"), (prediction, "append_csv"), (Path, "write_text"), (Path, "write_bytes")]
"""


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    return write_cohort(tmp_path_factory.mktemp("files") / "c", 6, seed=2, size=96, workers=1)


def words(cohort, folder, *more):
    places = ["--out", folder / "output.csv", "--overlays", folder / "pictures", "--report", folder / "pages/r.html"]
    return ["predict", "--csv", cohort / "test.csv", "--images", cohort, *places, *more]


def run(program, *words):
    return subprocess.run([sys.executable, "-c", PROGRAM + program, *map(str, words)], capture_output=True, text=True)


def content(folder):
    """Return the bytes of all files that a user sees."""
    files = [path for path in folder.rglob("*") if path.is_file() and not any(part.startswith(".") for part in path.relative_to(folder).parts)]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def hidden(folder):
    return [path for path in folder.rglob(".*")]


KILLS = """
import json
folder, kills, predict = sys.argv[1], int(sys.argv[2]), sys.argv[3:]

def child(moment, *words):
    "Run `predict` in a process of its own that dies at a moment; return its exit status."
    if pid := os.fork(): return os.waitpid(pid, 0)[1]
    calls = die_at(moment, "write_tables", *WRITES)
    status = cli.main([*predict, *words])
    Path(folder + ".calls").write_text(str(len(calls)))
    os._exit(status)

def shown():
    files.settle(Path(folder) / "prediction.json")
    found = {str(path.relative_to(folder)): path.read_bytes() for path in sorted(Path(folder).rglob("*"))
             if path.is_file() and not any(part.startswith(".") for part in path.relative_to(folder).parts)}
    return found

old, new = ["--threshold", "0.9", "--overwrite"], ["--threshold", "0.4", "--overwrite"]
assert child(-1, *new) == 0
after = shown()
assert child(-1, *old) == 0
before, total = shown(), int(Path(folder + ".calls").read_text())
assert before != after and total > kills
states = []
for moment in np.linspace(1, total, kills).round().astype(int).tolist():
    assert child(moment, *new) == signal.SIGKILL
    found = shown()
    states.append("old" if found == before else "new" if found == after else "mixed")
    assert child(-1, *old) == 0 and shown() == before
    assert not list(Path(folder).rglob(".*")), list(Path(folder).rglob(".*"))
print(json.dumps(states))
"""


def test_twenty_kills_never_mix_two_predictions(cohort, tmp_path):
    """Killed at 20 moments of the writing: all files are of one call, and the next call leaves nothing hidden behind."""
    done = run(KILLS, tmp_path / "o", 20, *words(cohort, tmp_path / "o"))
    assert done.returncode == 0, done.stderr[-3000:]
    states = json.loads(done.stdout.splitlines()[-1])
    assert len(states) == 20 and "mixed" not in states and states == sorted(states, reverse=True), states
    assert {"old", "new"} == set(states)


@pytest.mark.parametrize("stopped", [2, 5])
def test_resume_gives_the_same_bytes(cohort, tmp_path, stopped):
    """Killed while it reads a study: `--resume` reads the rest only, and all files are those of a call that was not killed."""
    whole = run("sys.exit(cli.main(sys.argv[1:]))", *words(cohort, tmp_path / "o"))
    assert whole.returncode == 0, whole.stderr
    expected = content(tmp_path / "o")
    for path in expected:
        (tmp_path / "o" / path).unlink()
    die = f"die_at({stopped + 1}, '_row'); sys.exit(cli.main(sys.argv[1:]))"
    assert run(die, *words(cohort, tmp_path / "o")).returncode == -signal.SIGKILL
    assert content(tmp_path / "o") == {} and hidden(tmp_path / "o")
    other = run("sys.exit(cli.main(sys.argv[1:]))", *words(cohort, tmp_path / "o", "--threshold", 0.3, "--resume"))
    assert other.returncode == 1 and "was begun with other threshold" in other.stderr
    count = "read = prediction.read_study; n = []; prediction.read_study = lambda *p: n.append(1) or read(*p); s = cli.main(sys.argv[1:]); print(len(n)); sys.exit(s)"
    done = run(count, *words(cohort, tmp_path / "o", "--resume", "--workers", 1))
    assert done.returncode == 0 and int(done.stdout.splitlines()[-1]) == 6 - stopped, done.stderr
    assert content(tmp_path / "o") == expected and not hidden(tmp_path / "o")
    again = run(count, *words(cohort, tmp_path / "o", "--resume"))
    assert again.returncode == 0 and "was finished before" in again.stdout and again.stdout.splitlines()[-1] == "0"


def test_a_second_predict_is_refused(cohort, tmp_path):
    """Two calls into one folder: the later gets one sentence that names it, the earlier its files."""
    wait = "first = prediction.append_rows\ndef slow(*p):\n    print('reading', flush=True); sys.stdin.readline(); first(*p)\nprediction.append_rows = slow\nsys.exit(cli.main(sys.argv[1:]))"
    line = [sys.executable, "-c", PROGRAM + wait, *map(str, words(cohort, tmp_path / "o"))]
    with subprocess.Popen(line, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as first:
        assert first.stdout.readline() == "reading\n"
        plain = ["predict", "--csv", cohort / "test.csv", "--images", cohort, "--out", tmp_path / "o/output.csv"]
        for line, taken in ((words(cohort, tmp_path / "o"), f"r.html in {tmp_path / 'o/pages'}"), (plain, f"prediction.json in {tmp_path / 'o'}")):
            second = run("sys.exit(cli.main(sys.argv[1:]))", *line)
            assert second.returncode == 1 and f"another process is writing {taken}; wait" in second.stderr
        first.communicate("\n")
    assert first.returncode == 0 and "output.csv" in content(tmp_path / "o") and not hidden(tmp_path / "o")


def test_interrupted_predict_says_so_and_goes_on(cohort, tmp_path):
    """Ctrl-C: status 130 and one sentence; `--resume` ends it."""
    press = "read = prediction.read_study\ndef read_study(engine, study, t):\n    if study.index == '1004': os.kill(os.getpid(), signal.SIGINT); time.sleep(0.5)\n    return read(engine, study, t)\n"
    press += "prediction.read_study = read_study\nsys.exit(cli.main(sys.argv[1:]))"
    done = run(press, *words(cohort, tmp_path / "o"))
    assert done.returncode == 130 and done.stderr.splitlines()[-1:] == ["coding_vessels predict: interrupted; the same command with --resume goes on."], done.stderr
    assert "Traceback" not in done.stderr and content(tmp_path / "o") == {}
    assert run("sys.exit(cli.main(sys.argv[1:]))", *words(cohort, tmp_path / "o", "--resume")).returncode == 0


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak is read from /proc")
def test_memory_does_not_grow_with_the_studies(cohort, tmp_path):
    """300 linked studies with report, each with a page of 400 kB, take no more memory than 30: what is kept of each lies in a file."""
    peaks, rest = [], "page = report.page_of\nreport.page_of = lambda *p: page(*p) | {'ballast': 'x' * 400_000}\nprediction.tqdm = lambda rows, **options: rows\ns = cli.main(sys.argv[1:])\nprint(int(Path('/proc/self/status').read_text().split('VmHWM:')[1].split()[0]) // 1024); sys.exit(s)"
    for patients in (30, 300):
        folder = tmp_path / str(patients)
        (folder / "images").mkdir(parents=True)
        for i in range(patients):
            for path in sorted((cohort / "images").glob(f"{1001 + i % 6}*")):
                (folder / "images" / path.name.replace(str(1001 + i % 6), str(2000 + i))).symlink_to(path)
        (folder / "test.csv").write_text("Index\n" + "".join(f"{2000 + i}\n" for i in range(patients)))
        line = ["predict", "--csv", folder / "test.csv", "--images", folder, "--out", folder / "o/output.csv", "--report", folder / "o/r.html"]
        done = run(rest, *line, "--workers", 1, "--threshold", 0.4)
        assert done.returncode == 0, done.stderr
        peaks.append(int(done.stdout.splitlines()[-1]))
    print(peaks, "MiB")
    assert peaks[1] - peaks[0] < 40  # held in memory, the pages alone would be 108 MB more
