"""Makes the weights that ship with the package, from nothing.

    python tests/make_weights.py RUN [--patients 3000] [--epochs 5] [--seed 101]

RUN gets the simulated cohorts and the run folder `run`; what is there already is kept, so an interrupted call goes on.
On two cores: about 20 minutes for the cohorts, 65 for the training.
"""

import argparse
import json
import os
from dataclasses import replace
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

from coding_vessels.phantom import PRESETS as COHORTS
from coding_vessels.phantom import write_cohort
from coding_vessels.studies import read_cohort

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--patients", type=int, default=3000)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--seed", type=int, default=101)
    args = parser.parse_args()
    cohorts = {  # preset, patients, seed, pixels
        "train": ("training", args.patients, args.seed, 512),
        "select": ("training", 150, args.seed + 50, 512),  # chooses the epoch
        "valid": ("kium", 500, args.seed + 100, 720),  # natural frequencies: calibrates
    }
    studies = {}
    for name, (preset, patients, seed, size) in cohorts.items():
        folder = args.run / name
        if not folder.exists():
            write_cohort(folder, patients, seed, size, *COHORTS[preset])
        studies[name], problems = read_cohort(folder / "groundtruth.csv", folder)
        assert not len(problems), problems

    from coding_vessels.model import SHIPPED, load_model
    from coding_vessels.training import PRESETS, calibrate, train

    settings = replace(PRESETS["vessel"], epochs=args.epochs, seed=args.seed)
    history = train(studies["train"], args.run / "run", settings, studies["select"], args.run / "cache", resume=True)
    calibrate(load_model(args.run / "run/best.keras"), studies["valid"], cache=args.run / "cache").save(SHIPPED)
    record = json.loads((args.run / "run/settings.json").read_text(encoding="utf-8"))
    record = {
        "settings": record["settings"],
        "versions": record["versions"],
        "cohorts": {name: dict(zip(("preset", "patients", "seed", "pixels"), values)) for name, values in cohorts.items()},
        "history": history.to_dict("list"),
    }
    SHIPPED.with_suffix(".json").write_text(json.dumps(record, indent=1), encoding="utf-8")
    print(f"{SHIPPED}: now run nbs/12_weights.ipynb, which measures it and writes the model card")
