"""Makes the weights that ship with the package, from nothing.

    python tests/make_weights.py RUN [--patients 8000] [--epochs 4] [--fresh 4000] [--seed 101] [--precision mixed_bfloat16]

RUN gets the simulated cohorts and the run folder `run`; what is there already is kept, so an interrupted call goes on.
On two cores with AVX-512 and its bfloat16: about 35 minutes for the cohorts, 95 for the training. `--precision float32`
suits other processors.
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

from coding_vessels.phantom import PRESETS as COHORTS
from coding_vessels.phantom import write_cohort
from coding_vessels.studies import read_cohort


def save_small(model, path):
    """Save a model as a `.keras` file whose parts are compressed."""
    model.save(path)
    with zipfile.ZipFile(path) as parts:
        contents = [(info, parts.read(info)) for info in parts.infolist()]
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as parts:
        for info, content in contents:
            parts.writestr(info.filename, content)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--patients", type=int, default=8000)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--seed", type=int, default=101)
    parser.add_argument("--fresh", type=int, default=4000)
    parser.add_argument("--precision", default="mixed_bfloat16")
    args = parser.parse_args()
    cohorts = {  # preset, patients, seed, pixels
        "train": ("training", args.patients, args.seed, 720),
        "select": ("training", 150, args.seed + 50, 720),  # chooses the epoch
        "valid": ("kium", 1500, args.seed + 100, 720),  # natural frequencies: calibrates
    }
    if args.fresh:
        cohorts["fresh"] = ("training", args.fresh, args.seed + 200, 720)
    studies = {}
    for name, (preset, patients, seed, size) in cohorts.items():
        folder = args.run / name
        if not folder.exists():
            write_cohort(folder, patients, seed, size, *COHORTS[preset])
        studies[name], problems = read_cohort(folder / "groundtruth.csv", folder)
        assert not len(problems), problems

    from coding_vessels.engines import SHIPPED, export_model
    from coding_vessels.model import load_model
    from coding_vessels.training import PRESETS, calibrate, train

    settings = replace(PRESETS["vessel"], epochs=args.epochs, seed=args.seed, precision=args.precision)
    history = train(studies["train"], args.run / "run", settings, studies["select"], args.run / "cache", resume=True)
    histories, last = [history], args.run / "run"
    if args.fresh:  # then patients that it has never met, once and gently: a fifth of the learning rate
        last = args.run / "again"
        gentle = replace(settings, epochs=1, start=str(args.run / "run/best.keras"), learning_rate=settings.learning_rate / 5)
        histories.append(train(studies["fresh"], last, gentle, studies["select"], args.run / "cache", resume=True))
    model = load_model(last / "best.keras")
    # Kernels in half precision: the file is half the size.
    model.set_weights([w.astype(np.float16).astype(w.dtype) if w.ndim > 1 else w for w in model.get_weights()])
    calibrate(model, studies["valid"], cache=args.run / "cache")
    save_small(model, SHIPPED)
    export_model(SHIPPED)
    record = json.loads((args.run / "run/settings.json").read_text(encoding="utf-8"))
    record = {
        "settings": record["settings"] | {"again": int(args.fresh > 0)},
        "versions": record["versions"],
        "cohorts": {name: dict(zip(("preset", "patients", "seed", "pixels"), values)) for name, values in cohorts.items()},
        "history": pd.concat(histories, ignore_index=True).to_dict("list"),
    }
    SHIPPED.with_suffix(".json").write_text(json.dumps(record, indent=1), encoding="utf-8")
    print(f"{SHIPPED}: now run nbs/12_weights.ipynb, which measures it and writes the model card")
