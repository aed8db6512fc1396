"""The installed command, end to end, as a user meets it: a wheel in an environment without the sources."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
import venv
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="session")
def command(tmp_path_factory):
    """Return a function that runs `coding_vessels` from the built wheel, outside the repository."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    files = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.splitlines()
    for name in files:
        if (ROOT / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((ROOT / name).read_bytes())
    pip = [sys.executable, "-m", "pip", "-q"]
    subprocess.run([*pip, "wheel", "--no-deps", "-w", str(folder), str(source)], check=True)
    (wheel,) = folder.glob("*.whl")
    venv.create(folder / "venv", system_site_packages=False, with_pip=False)
    python = folder / "venv/bin/python"
    site = next((folder / "venv/lib").glob("python*/site-packages"))
    subprocess.run([*pip, "install", "--no-deps", "--target", str(site), str(wheel)], check=True)
    outside = next(path for path in map(Path, sys.path) if path.name == "site-packages" and (path / "numpy").exists())
    (site / "dependencies.pth").write_text(f"{outside}\n")  # the dependencies, after the wheel

    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}

    def run(*words, cwd=folder):
        return subprocess.run(
            [python, "-m", "coding_vessels", *map(str, words)], cwd=cwd, capture_output=True, text=True, env=environment
        )

    where = subprocess.run(
        [python, "-c", "import coding_vessels; print(coding_vessels.__file__)"], cwd=folder, capture_output=True, text=True, env=environment
    )
    assert str(site) in where.stdout, "the wheel itself is tested"
    return run


def test_version_and_wrong_words(command):
    version = re.search(r"^version = (.*)$", (ROOT / "settings.ini").read_text(), re.M)[1]
    assert command("--version").stdout.strip() == version
    assert f"\nversion: {version}\n" in (ROOT / "CITATION.cff").read_text()
    assert f"\n## {version} " in (ROOT / "CHANGELOG.md").read_text()
    assert command("pre-dict").returncode == 2


def test_export_in_fewer_bits(command, tmp_path):
    """A trained model becomes a file for OpenVINO in bfloat16, and predicts with it as before."""
    from coding_vessels.model import vessel_model
    from coding_vessels.phantom import write_cohort
    from coding_vessels.preprocessing import Preprocessing

    vessel_model(Preprocessing(64)).save(tmp_path / "best.keras")
    cohort = write_cohort(tmp_path / "cohort", 3, 1, 128)
    data = ["--csv", cohort / "groundtruth.csv", "--images", cohort]
    for precision, name in (("float32", "best.xml"), ("bfloat16", "best.bfloat16.xml"), ("int8", "best.int8.xml")):
        words = ["export", "--model", tmp_path / "best.keras", "--precision", precision, *(data if precision == "int8" else [])]
        done = command(*words)
        assert done.returncode == 0 and (tmp_path / name).exists(), done.stderr
        again = command(*words)
        assert again.returncode == 1 and "add --overwrite" in again.stderr
        done = command("predict", *data, "--model", tmp_path / name, "--out", tmp_path / precision / "output.csv")
        assert done.returncode == 0, done.stderr
    exact, rough = (pd.read_csv(tmp_path / kind / "probabilities.csv").iloc[:, 1:] for kind in ("float32", "int8"))
    assert 0 < (exact - rough).abs().to_numpy().max() < 0.05
    done = command("export", "--model", tmp_path / "best.keras", "--precision", "int8", "--csv", "a.csv", "--overwrite")
    assert done.returncode == 1 and "belong together" in done.stderr


def test_a_stale_or_damaged_export_is_refused(command, tmp_path):
    """Trained again, or 2,000 bytes changed: a named export gives one sentence, `auto` computes in Keras."""
    from coding_vessels.model import vessel_model
    from coding_vessels.phantom import write_cohort
    from coding_vessels.preprocessing import Preprocessing

    model, export = tmp_path / "best.keras", tmp_path / "best.xml"
    vessel_model(Preprocessing(64)).save(model)
    assert command("export", "--model", model).returncode == 0
    cohort = write_cohort(tmp_path / "cohort", 2, 1, 96)
    predict = ["predict", "--csv", cohort / "groundtruth.csv", "--images", cohort, "--out", tmp_path / "output.csv", "--overwrite"]

    def refused(*words):
        done = command(*predict, *words)
        return done.stderr if done.returncode == 1 and not (tmp_path / "output.csv").exists() else f"taken: {done.stderr}"

    weights = export.with_suffix(".bin").read_bytes()
    export.with_suffix(".bin").write_bytes(weights[:4000] + bytes(2000) + weights[6000:])
    for words in (["--model", export], ["--model", model, "--engine", "openvino"]):
        assert "best.bin is missing, damaged" in refused(*words)
    export.with_suffix(".bin").write_bytes(weights)
    vessel_model(Preprocessing(64)).save(model)
    for words in (["--model", export], ["--model", model, "--engine", "openvino"]):
        assert "was made from other weights" in refused(*words)
    done = command(*predict, "--model", model, "--report", tmp_path / "page.html")
    assert done.returncode == 0 and "best.keras, run in keras" in (tmp_path / "page.html").read_text()


def test_demo_small(command, tmp_path):
    """The figures fit the published ones; pictures come along, and places of all that is flagged and of nothing else."""
    done = command("demo", "--out", tmp_path / "demo", "--patients", 30)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "location accuracy" in done.stdout and "Not a medical device" in done.stdout and "simulated patients only" in done.stdout
    output = pd.read_csv(tmp_path / "demo/output.csv").set_index("Index")
    flagged = output.drop(columns="Aneurysm").stack()
    positions = pd.read_csv(tmp_path / "demo/positions.csv")
    assert len(output) == 30 and set(positions.groupby(["Index", "location"]).groups) == set(flagged.index[flagged == 1]) != set()
    record = json.loads((tmp_path / "demo/scores/scores.json").read_text())
    assert f"{record['figures']['AUROC']['score']:.3f}</td>" in (tmp_path / "demo/report.html").read_text() and record["sizes"]
    published = json.loads((ROOT / "coding_vessels/assets/scores.json").read_text())["test"]  # of 500 other patients
    for name in ("AUROC", "pooled location AUROC"):
        found = record["figures"][name]
        assert 0.5 < found["low"] < published[name]["score"] < found["high"], name
    again = command("demo", "--out", tmp_path / "demo")
    assert again.returncode == 1 and "is not empty" in again.stderr


def test_fine_tunes_the_shipped_weights(command, tmp_path):
    """One command goes on from the shipped weights, on a cohort without truth files, and keeps the frame size."""
    assert command("simulate", tmp_path / "c", "--patients", 8, "--size", 256).returncode == 0
    for path in (tmp_path / "c/truth").iterdir():
        path.unlink()
    words = ["--csv", tmp_path / "c/groundtruth.csv", "--images", tmp_path / "c"]
    done = command("train", *words, "--start", "shipped", "--epochs", 1, "--out", tmp_path / "run")
    assert done.returncode == 0, done.stderr[-2000:]
    assert pd.read_csv(tmp_path / "run/history.csv").loss[0] < 5  # not the hundred of means that the weights don't know
    done = command("predict", *words, "--model", tmp_path / "run/best.keras", "--out", tmp_path / "output.csv")
    assert done.returncode == 0 and len(pd.read_csv(tmp_path / "output.csv")) == 8


def test_predicts_every_patient_of_a_mixed_cohort(command, tmp_path):
    """64 patients, grey and colour, five sizes, JPEG and PNG, padded indices, columns in another order."""
    rng, images = np.random.default_rng(0), tmp_path / "images"
    images.mkdir()
    for i in range(64):
        width, height = [(120, 120), (160, 128), (200, 120), (128, 160), (97, 97)][i % 5]
        for view in "LI-A LI-B LV-A LV-B RI-A RI-B RV-A RV-B".split():
            frame = rng.normal(190, 4, (height, width) if i % 2 else (height, width, 3)).astype(np.uint8)
            ends = rng.integers(0, min(width, height), (2, 2)).tolist()
            cv2.line(frame, *ends, (60, 60, 60), 6)  # a vessel, for what shows none is not read
            assert cv2.imwrite(str(images / f"{i + 1:04d}{view}.{'png' if i % 3 else 'jpg'}"), frame)
    pd.DataFrame({"Index": range(1, 65)}).to_csv(tmp_path / "test.csv", index=False)
    done = command("predict", "--csv", tmp_path / "test.csv", "--images", images, "--out", tmp_path / "output.csv")
    assert done.returncode == 0, done.stderr[-2000:]
    output = pd.read_csv(tmp_path / "output.csv")
    assert output.Index.tolist() == list(range(1, 65)) and output.shape == (64, 23)
    assert output.Aneurysm.between(0, 1).all() and set(np.unique(output.iloc[:, 2:])) <= {0, 1}


def test_evaluate_gives_the_official_figures(command, tmp_path):
    """Official formula, written out, against the printed figures; missing patients and columns are named."""
    from coding_vessels.anatomy import LABELS
    from coding_vessels.evaluation import auroc, location_accuracy, read_labels

    rng = np.random.default_rng(1)
    truth = pd.DataFrame((rng.random((40, 22)) < 0.04).astype(int), columns=LABELS).assign(Index=np.arange(40))
    truth["Aneurysm"] = truth[list(LABELS[1:])].max(axis=1)
    output = pd.DataFrame(rng.random((40, 22)).round(3), columns=LABELS).assign(Index=np.arange(40))
    truth.to_csv(tmp_path / "t.csv", index=False)
    output.sample(frac=1, random_state=1).to_csv(tmp_path / "o.csv", index=False)
    one, two = read_labels(tmp_path / "t.csv", truth=True), read_labels(tmp_path / "o.csv")
    places = list(LABELS[1:])
    assert abs(location_accuracy(one, two) - (1 - np.abs(truth[places] - output[places]).to_numpy().sum() / (40 * 21))) < 1e-12
    high, low = output.Aneurysm[truth.Aneurysm == 1], output.Aneurysm[truth.Aneurysm == 0]
    pairs = np.mean([(a > b) + 0.5 * (a == b) for a in high for b in low])
    assert abs(auroc(one, two) - pairs) < 1e-12
    done = command("evaluate", "--truth", tmp_path / "t.csv", "--output", tmp_path / "o.csv")
    assert f"{pairs:.4f}" in done.stdout and "predicting nothing" in done.stdout
    done = command("evaluate", "--truth", tmp_path / "t.csv", "--output", tmp_path / "o.csv", "--compare", tmp_path / "o.csv", "--out", tmp_path / "scores")
    record = json.loads((tmp_path / "scores/scores.json").read_text())
    assert record["figures"]["AUROC"]["score"] == auroc(one, two) and record["comparison"]["DeLong"] == {"z": 0.0, "p": 1.0}
    assert "DeLong" in done.stdout and (tmp_path / "scores/curves.png").stat().st_size > 10_000
    output.drop(index=7).to_csv(tmp_path / "short.csv", index=False)
    done = command("evaluate", "--truth", tmp_path / "t.csv", "--output", tmp_path / "short.csv")
    assert done.returncode == 1 and "patient 7: missing" in done.stderr
    output.drop(columns="BA").to_csv(tmp_path / "narrow.csv", index=False)
    done = command("evaluate", "--truth", tmp_path / "t.csv", "--output", tmp_path / "narrow.csv")
    assert done.returncode == 1 and "lacks the columns BA" in done.stderr


def test_triage_lists_the_most_urgent_first(command, tmp_path):
    """A finished prediction, histories and a reader's findings become a sorted list; mistakes give one sentence and no file."""
    from coding_vessels.anatomy import COLUMNS

    risk = pd.DataFrame(0.01, index=range(3), columns=COLUMNS).assign(Index=["0001", "0002", "0003"], L_MCA=[0.4, 0.9, 0.1])
    risk["Aneurysm"] = risk.L_MCA
    risk.to_csv(tmp_path / "probabilities.csv", index=False)
    places = {name: (risk[name] >= 0.3).astype(int) for name in COLUMNS[2:]}
    risk.assign(**places).to_csv(tmp_path / "output.csv", index=False)
    (tmp_path / "patients.csv").write_text("Index,age,hypertension,earlier_sah,population\n1,75,yes,yes,finland\n2,50,no,no,europe\n")
    (tmp_path / "findings.csv").write_text("Index,size_mm,reason\n1,12,measured on 3D\n2,4,measured on 3D\n")
    words = ["triage", tmp_path, "--patients", tmp_path / "patients.csv"]
    done = command(*words, "--findings", tmp_path / "findings.csv")
    assert done.returncode == 0, done.stderr
    assert "Not a medical device" in done.stdout and "Order: patients with a place first" in done.stdout
    table = pd.read_csv(tmp_path / "triage.csv", dtype=str)
    assert table.Index.tolist() == ["0001", "0002", "0003"] and table.notice.str.startswith("Not a medical device").all()
    assert table.PHASES.tolist()[:2] == ["16", "2"] and table["PHASES rupture in 5 years, %"].tolist()[:2] == ["17.8", "0.4"]
    assert table.reason.tolist()[:2] == ["measured on 3D"] * 2 and table.ELAPSS.tolist()[:2] == ["35 to 39", "8 to 12"]
    assert "add --overwrite" in command(*words).stderr
    assert command(*words, "--overwrite").returncode == 0  # without the reader: the surer place first, sizes open
    table = pd.read_csv(tmp_path / "triage.csv", dtype=str)
    assert table.Index.tolist() == ["0002", "0001", "0003"] and table.PHASES.tolist()[0] == "2 to 12"
    before = (tmp_path / "triage.csv").read_bytes()
    (tmp_path / "patients.csv").write_text("Index,age\n1,75\n7,50\n")
    done = command(*words, "--overwrite")
    assert done.returncode == 1 and "patients.csv, line 3: patient '7' is not in the prediction" in done.stderr
    assert (tmp_path / "triage.csv").read_bytes() == before
    assert "or is an input" in command(*words, "--out", tmp_path / "patients.csv", "--overwrite").stderr
    (tmp_path / "patients.csv").write_text("Index,age\n1,75\n")
    (tmp_path / "errors.csv").write_text("Index,error\n0004,cut\n")
    done = command(*words, "--overwrite")
    assert done.returncode == 3 and "errors.csv" in done.stderr


def test_fuse_teaches_and_puts_together(command, tmp_path):
    """Readings and histories of one cohort teach a fusion; mistakes give one sentence and no file."""
    from coding_vessels.anatomy import COLUMNS

    rng, names = np.random.default_rng(0), [f"{number:04d}" for number in range(1, 201)]
    sick, place = np.arange(200) % 2, {name: 0 for name in COLUMNS[2:]}
    readings = np.clip(0.5 + 0.2 * (sick - 0.5) + rng.normal(0, 0.2, 200), 0.01, 0.99)
    table = pd.DataFrame({"Index": names, "Aneurysm": readings, **place})
    table.assign(L_MCA=sick).to_csv(tmp_path / "output.csv", index=False)
    table.assign(L_MCA=readings).to_csv(tmp_path / "probabilities.csv", index=False)
    table.assign(Aneurysm=sick, L_MCA=sick).to_csv(tmp_path / "groundtruth.csv", index=False)
    smoking = np.where(rng.random(200) < 0.3 + 0.4 * sick, "yes", "no")
    pd.DataFrame({"Index": names, "smoking": smoking}).to_csv(tmp_path / "patients.csv", index=False)
    words, saved, out = ["fuse", tmp_path, "--patients", tmp_path / "patients.csv"], tmp_path / "f.keras", tmp_path / "fused"
    (tmp_path / "prediction.json").write_text('{"model": "vessel.keras"}')
    (tmp_path / "errors.csv").write_text("Index,error\n0999,no frame\n")
    done = command(*words, "--truth", tmp_path / "groundtruth.csv", "--save", saved)
    assert done.returncode == 0 and "taught on 200 patients" in done.stdout, done.stderr
    done = command(*words, "--fusion", saved, "--out", out)
    assert done.returncode == 0 and "Not a medical device" in done.stdout, done.stderr
    assert "taught on 200 of these patients; figures of theirs are too good" in done.stderr
    urgent = command("triage", out, "--patients", tmp_path / "patients.csv")
    assert urgent.returncode == 3 and "left out are not in the list" in urgent.stderr and "simulated patients only" in urgent.stdout
    taken = command("triage", out, "--patients", tmp_path / "patients.csv", "--out", out / "prediction.json", "--overwrite")
    assert taken.returncode == 1 and "or is an input" in taken.stderr
    fused = pd.read_csv(out / "output.csv", dtype={"Index": str})
    assert fused.Index.tolist() == names and (fused.L_MCA == sick).all()
    gain = (fused.Aneurysm - readings)[smoking == "yes"].mean() - (fused.Aneurysm - readings)[smoking == "no"].mean()
    assert gain > 0.1
    score = command("evaluate", "--truth", tmp_path / "groundtruth.csv", "--output", out / "output.csv")
    assert score.returncode == 0 and "AUROC" in score.stdout, score.stderr
    for more, told in (([], "give --truth and --save"), (["--truth", tmp_path / "groundtruth.csv", "--out", out], "give --truth and --save"),
                       (["--fusion", saved, "--out", out], "choose another name"), (["--fusion", tmp_path / "output.csv", "--out", tmp_path / "new"], "holds no fusion"),
                       (["--truth", tmp_path / "groundtruth.csv", "--save", tmp_path / "f.h5"], "must end in .keras")):
        done = command(*words, *more)
        assert done.returncode == 1 and told in done.stderr, (more, done.stderr)
    assert not (tmp_path / "new").exists() and not list(tmp_path.glob("*.partial"))


def test_scales_that_are_not_used_are_told(command, tmp_path):
    """A bad row of scales.csv leaves no patient out, and says so."""
    shutil.copytree(ROOT / "data/demo", tmp_path / "demo")
    scales = tmp_path / "demo/scales.csv"
    scales.write_text(scales.read_text().replace("1001,LI-A,0.67165", "1001,LI-A,wide") + "7,LI-A,0.3,a ruler\n")
    done = command("predict", "--csv", tmp_path / "demo/test.csv", "--images", tmp_path / "demo", "--out", tmp_path / "o/output.csv")
    assert done.returncode == 0 and not (tmp_path / "o/errors.csv").exists(), done.stderr
    assert f"{scales}, line 2: mm is 'wide'; write millimetres" in done.stderr
    assert f"{scales}, patient 7: scales without a row in the CSV" in done.stderr


def test_demo_cohort_in_data(command):
    done = command("check", "--csv", ROOT / "data/demo/groundtruth.csv", "--images", ROOT / "data/demo")
    assert done.returncode == 0 and "5 usable studies, 0 problems" in done.stdout


def test_demo_cohort_is_what_its_command_writes(command, tmp_path):
    assert command("simulate", tmp_path / "demo", "--patients", 5, "--seed", 2023, "--size", 256).returncode == 0
    for name in ("groundtruth.csv", "scales.csv", "truth/1002.json"):
        assert (tmp_path / "demo" / name).read_text() == (ROOT / "data/demo" / name).read_text(), name
    for path in (ROOT / "data/demo/images").iterdir():
        ours, theirs = (cv2.imread(str(folder / path.name), 0).astype(int) for folder in (path.parent, tmp_path / "demo/images"))
        assert np.abs(ours - theirs).mean() < 1, path.name


def test_simulates_twins(command, tmp_path):
    done = command("simulate", tmp_path / "c", "--patients", 3, "--size", 128, "--seed", 4, "--twins", tmp_path / "healthy")
    assert done.returncode == 0 and f"the same without their aneurysms: {tmp_path / 'healthy'}" in done.stdout
    ill, well = (pd.read_csv(tmp_path / name / "groundtruth.csv") for name in ("c", "healthy"))
    assert ill.Aneurysm.sum() and not well.iloc[:, 1:].to_numpy().sum() and (ill.Index == well.Index).all()
    done = command("simulate", tmp_path / "d", "--patients", 3, "--twins", tmp_path / "healthy")
    assert done.returncode == 1 and "is not an empty folder" in done.stderr and not (tmp_path / "d").exists()


def test_a_killed_run_resumes(command, tmp_path):
    """SIGKILL after the second epoch; the resumed run has every epoch once, and resuming a finished run trains nothing."""
    assert command("simulate", tmp_path / "c", "--patients", 12, "--size", 96).returncode == 0
    words = ["train", "--csv", tmp_path / "c/groundtruth.csv", "--images", tmp_path / "c", "--out", tmp_path / "run", "--epochs", "5", "--size", "64"]
    process = subprocess.Popen([sys.executable, "-m", "coding_vessels", *map(str, words)], cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    history, deadline = tmp_path / "run/history.csv", time.time() + 240
    while time.time() < deadline and not (history.exists() and len(history.read_text().splitlines()) >= 3):
        time.sleep(0.05)
    process.kill()
    process.wait()
    before = len(pd.read_csv(history))
    assert 2 <= before < 5
    assert command(*words, "--resume").returncode == 0
    epochs = pd.read_csv(history).epoch.tolist()
    assert epochs[-1] > before and epochs == list(range(epochs[-1] + 1))
    assert command(*words, "--resume").returncode == 0
    assert pd.read_csv(history).epoch.tolist() == epochs


def test_the_commands_of_both_readmes(command, tmp_path):
    """What the README says to type is typed, in its order, with fewer patients and one epoch."""
    from test_readme import commands

    from coding_vessels.arteries import Population, draw_vessels
    from coding_vessels.projection import write_tree

    english, korean = (commands((ROOT / name).read_text(encoding="utf-8")) for name in ("README.md", "README.ko.md"))
    assert english == korean
    typed = [shlex.split(line)[1:] for line in english if line.startswith("coding_vessels ") and "demo" not in line]
    shutil.copytree(ROOT / "data/demo", tmp_path / "data/demo")

    def run(*words):
        return command(*words, cwd=tmp_path)

    for name, patients in (("train", 14), ("test", 56)):
        assert run("simulate", name, "--patients", patients, "--size", 96, "--seed", 1).returncode == 0
    for source, name in (("train/groundtruth", "train"), ("test/test", "test"), ("test/groundtruth", "groundtruth")):
        shutil.copy(tmp_path / f"{source}.csv", tmp_path / f"{name}.csv")
    histories = pd.read_csv(tmp_path / "test.csv", dtype=str)[["Index"]].assign(age=60, sex="female", smoking="yes")
    histories.assign(smoking=np.where(np.arange(56) % 3, "yes", "no")).to_csv(tmp_path / "histories.csv", index=False)
    (tmp_path / "vessels").mkdir()
    write_tree(tmp_path / "vessels/head.swc", draw_vessels(np.random.default_rng(5), Population(), generations=0))
    assert run("simulate", "filmed", "--patients", 2, "--film", "--size", 300).returncode == 0
    (tmp_path / "hospital").symlink_to("filmed/dicom")

    verbs = set()
    for words in typed:
        words = ["3" if (before, word) == ("--patients", "100") else word for before, word in zip(["", *words], words)]
        words = [str(path) for word in words for path in (sorted(tmp_path.glob(word)) if "*" in word else [word])]
        words += ["--epochs", "1"] * (words[0] == "train") + ["--size", "96"] * (words[0] == "simulate" and "--film" not in words)
        if words[0] == "export-dicom":  # it speaks of a prediction of the cohort that was imported
            cohort = tmp_path / "cohort"
            more = ["--out", "output.csv", "--overwrite", "--threshold", "0.02"]
            assert run("predict", "--csv", cohort / "test.csv", "--images", cohort, *more).returncode == 0
        done = run(*words)
        assert done.returncode == 0, (words, done.stderr[-2000:])
        assert "report.html" not in words or (tmp_path / "report.html").exists()
        verbs.add(words[0])
    assert len(verbs) == 11 and list((tmp_path / "reports").glob("*.dcm"))
