"""The small installation of the README: prediction without TensorFlow."""

import subprocess
import venv
from configparser import ConfigParser
from pathlib import Path

ROOT = Path(__file__).parents[1]
SMALL = ROOT / "requirements-prediction.txt"


def test_small_requirements_are_of_the_whole():
    settings = ConfigParser(delimiters=["="])
    settings.read(ROOT / "settings.ini", encoding="utf-8")
    lines = [line for line in SMALL.read_text().splitlines() if not line.startswith("#")]
    assert set(lines) < set(settings["DEFAULT"]["requirements"].split())


def test_small_installation(tmp_path):
    venv.create(tmp_path / "venv", with_pip=True)
    python = tmp_path / "venv/bin/python"
    source = tmp_path / "source"
    names = subprocess.run(["git", "-C", ROOT, "ls-files", "-co", "--exclude-standard"], check=True, capture_output=True, text=True)
    for name in names.stdout.splitlines():
        if (ROOT / name).is_file() and name.split("/")[0] != "nbs":
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((ROOT / name).read_bytes())
    subprocess.run([python, "-m", "pip", "install", "-q", "-r", SMALL], check=True)
    subprocess.run([python, "-m", "pip", "install", "-q", "--no-deps", source], check=True)

    def run(*words):
        return subprocess.run([python, "-m", "coding_vessels", *words], cwd=tmp_path, capture_output=True, text=True)

    cohort = ["--csv", str(ROOT / "data/demo/test.csv"), "--images", str(ROOT / "data/demo")]
    assert run("check", *cohort, "--unlabelled").stdout == "5 usable studies, 0 problems\n"
    done = run("predict", *cohort, "--out", "output.csv", "--report", "report.html")
    assert done.returncode == 0, done.stderr
    assert len((tmp_path / "output.csv").read_text().splitlines()) == 6
    done = run("train", *cohort, "--out", "run")
    assert done.returncode == 1 and "keras is not installed; `pip install coding_vessels`" in done.stderr
    used = sum(path.stat().st_size for path in (tmp_path / "venv").rglob("*") if path.is_file() and not path.is_symlink())
    assert used < 0.7e9, f"{used / 1e9:.2f} GB"
