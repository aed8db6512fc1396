"""Makes the weights that ship with the package, from nothing.

    python tests/make_weights.py RUN [--share 1.0] [--precision mixed_bfloat16]

RUN gets the simulated cohorts and a run folder for each stage of the training; what is there already is kept, so an
interrupted call goes on. On two cores with AVX-512 and its bfloat16: about an hour and a half for the cohorts, three
hours for the training. `--precision float32` suits other processors; `--share 0.01` is a trial with a hundredth of
the patients.
"""

import argparse
import json
import os
import zipfile
from dataclasses import replace
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
import pandas as pd

from coding_vessels.phantom import PRESETS as PHANTOMS
from coding_vessels.phantom import write_cohort
from coding_vessels.studies import read_cohort

COHORTS = (  # name, preset, patients, seed
    ("train", "training", 8000, 101),
    ("fresh", "training", 4000, 301),
    ("small", "training-small", 8000, 401),
    ("more", "training-small", 4000, 501),
    ("last", "training-small", 6000, 601),
    ("late", "training-small", 8000, 701),
    ("select", "training", 150, 151),  # chooses the epoch
    ("valid", "kium", 4000, 201),  # natural frequencies: calibrates
)
STAGES = (  # cohort, passes, learning rate, contrast of the frames
    ("train", 4, 1.5e-3, 1.25),
    ("fresh", 1, 3e-4, 1.25),
    ("small", 1, 7.5e-4, 1.25),
    ("more", 3, 1e-3, 0.8),
    ("last", 2, 1.2e-3, 0.8),
    ("late", 3, 1.2e-3, 0.8),
)


def save_small(model, path):
    """Save a model as a `.keras` file whose parts are compressed."""
    model.save(path)
    with zipfile.ZipFile(path) as parts:
        contents = [(info, parts.read(info)) for info in parts.infolist()]
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as parts:
        for info, content in contents:
            parts.writestr(info.filename, content)


def start_with(path, frames, run):
    """Return a model file with these weights for frames of that preprocessing."""
    from coding_vessels.model import load_model, preprocessing_of, vessel_model

    model = load_model(path)
    if preprocessing_of(model) == frames:
        return path
    other = vessel_model(frames)
    other.set_weights(model.get_weights())
    other.save(run / "start.keras")
    return str(run / "start.keras")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--share", type=float, default=1.0)
    parser.add_argument("--precision", default="mixed_bfloat16")
    args = parser.parse_args()
    cohorts = {name: (preset, max(2, round(args.share * patients)), seed, 720) for name, preset, patients, seed in COHORTS}
    studies = {}
    for name, (preset, patients, seed, size) in cohorts.items():
        folder = args.run / name
        if not folder.exists():
            write_cohort(folder, patients, seed, size, *PHANTOMS[preset])
        studies[name], problems = read_cohort(folder / "groundtruth.csv", folder)
        assert not len(problems), problems

    from coding_vessels.engines import SHIPPED, export_model
    from coding_vessels.model import load_model
    from coding_vessels.training import PRESETS, calibrate, train

    history, last = [], None
    for cohort, passes, rate, contrast in STAGES:  # each goes on where the one before ended, with patients that it has never met
        frames = replace(PRESETS["vessel"].preprocessing, contrast=contrast)
        start = last and start_with(last, frames, args.run)
        settings = replace(PRESETS["vessel"], preprocessing=frames, epochs=passes, learning_rate=rate, start=start, seed=101, precision=args.precision)
        run = args.run / f"run-{cohort}"
        part = train(studies[cohort], run, settings, studies["select"], args.run / "cache", resume=True)
        history.append(part.assign(stage=cohort))
        last = str(run / "best.keras")
    model = load_model(last)
    # Kernels in half precision: the file is half the size.
    model.set_weights([w.astype(np.float16).astype(w.dtype) if w.ndim > 1 else w for w in model.get_weights()])
    calibrate(model, studies["valid"], cache=args.run / "cache")
    save_small(model, SHIPPED)
    export_model(SHIPPED)
    record = json.loads(Path(last).with_name("settings.json").read_text(encoding="utf-8"))
    record = {
        "settings": record["settings"] | {"start": None},
        "stages": [dict(zip(("cohort", "passes", "learning rate", "contrast"), stage)) for stage in STAGES],
        "versions": record["versions"],
        "cohorts": {name: dict(zip(("preset", "patients", "seed", "pixels"), values)) for name, values in cohorts.items()},
        "history": pd.concat(history, ignore_index=True).to_dict("list"),
    }
    SHIPPED.with_suffix(".json").write_text(json.dumps(record, indent=1), encoding="utf-8")
    print(f"{SHIPPED}: now run nbs/12_weights.ipynb, which measures it and writes the model card")
