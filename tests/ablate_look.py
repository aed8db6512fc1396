"""What does the closer look owe to what it learned from?

    python tests/ablate_look.py OUTSIDE [--pairs 200] [--steps 1000] [--seed 0]

The closer look learns anew from nothing, each time with one thing left out: from squares of simulated aneurysms and of the same
places of their twins, as in the first stage of `make_weights.py`, much shorter. Then it scores the sacs of the first 20 real
patients of `15_outside`, a square around each in each view, and the same places of their twins, in both looks. OUTSIDE is the
folder of `make_outside.py`; `ablation.csv` appears there, a row for each trial, look and square. Half an hour on two cores.
"""

import argparse
import os
from dataclasses import replace
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import pandas as pd
from joblib import cpu_count
from make_weights import SQUARE, optimizer

from coding_vessels.anatomy import VIEWS
from coding_vessels.arteries import Population
from coding_vessels.batches import SQUARE as SIDE
from coding_vessels.batches import draw_lessons, load_marks, pair_squares, square_batches
from coding_vessels.model import closer_look, vessel_model
from coding_vessels.phantom import PRESETS
from coding_vessels.preprocessing import Preprocessing, preprocess_frames
from coding_vessels.studies import read_cohort, read_frame

FRAMES = Preprocessing(512, field=0.75, contrast=0.8)
DEVELOPMENT = 20  # the first of the real patients; the others are kept apart
CROWDED, VARIED = PRESETS["training"]
MEAN = Population(flags=CROWDED.flags, locations=CROWDED.locations, diameter=CROWDED.diameter, winding=(0, 0), uneven=(0, 0), plaques=0)
PLAIN = replace(Population(), flags=CROWDED.flags, locations=CROWDED.locations, diameter=CROWDED.diameter)
TRIALS = {  # whose squares are drawn, with which machine, and what is changed of them
    "as it is": (CROWDED, VARIED, None),
    "twins of other patients": (CROWDED, VARIED, "strangers"),
    "without masks": (CROWDED, VARIED, "no masks"),
    "half the resolution": (CROWDED, VARIED, "coarse"),
    "arteries of the preset kium": (PLAIN, VARIED, None),
    "arteries as they are on average": (MEAN, VARIED, None),
    "machine of the preset kium": (CROWDED, PRESETS["kium"][1], None),
}


def coarse(squares):
    """Return squares, (n, side, side, 1), whose every 2 x 2 pixels have their mean."""
    n, side = squares.shape[:2]
    means = squares.reshape(n, side // 2, 2, side // 2, 2, 1).mean(axis=(2, 4))
    return means.repeat(2, axis=1).repeat(2, axis=2)


def batches(lessons, seed, steps, change):
    """Yield what a trial learns from."""
    again = (lesson for _ in iter(int, 1) for lesson in lessons)
    for number, (squares, truth) in enumerate(square_batches(again, seed, uses=1, size=16)):
        if number == steps:
            return
        if change == "strangers":  # another aneurysm's twin beside each
            squares[1::2], truth = np.roll(squares[1::2], 1, axis=0), {name: part.copy() for name, part in truth.items()}
            for part in truth.values():
                part[1::2] = np.roll(part[1::2], 1, axis=0)
        yield coarse(squares) if change == "coarse" else squares, truth


def taught(lessons, seed, steps, change):
    """Return a closer look that has learned from lessons."""
    keras.utils.set_random_seed(seed)
    look = closer_look(vessel_model(FRAMES, masks=True))
    look.compile(optimizer(2e-3, steps), SQUARE, {"suspicion": 1.0, "mask": 0.0 if change == "no masks" else 2.0})
    look.fit(batches(lessons, seed, steps, change), steps_per_epoch=steps, shuffle=False, verbose=0)
    return look


def real_squares(outside, name):
    """Return patients, views and squares, (n, 2, 64, 64), of real sacs and the same places of their twins."""
    cohorts = [read_cohort(outside / folder / "groundtruth.csv", outside / folder)[0] for folder in (name, f"{name}-twins")]
    patients, views, found = [], [], []
    for study, twin in list(zip(*cohorts))[:DEVELOPMENT]:
        frames = np.stack([preprocess_frames(map(read_frame, one.frames), FRAMES) for one in (study, twin)])
        marks = load_marks(study, FRAMES)
        pair = frames, np.zeros((2, 22)), [marks, marks[:0]], np.zeros((2, 8, 128, 128), np.uint8)
        found.append(pair_squares(pair, SIDE)[0])
        patients += [study.index] * len(marks)
        views += [VIEWS[int(view)] for view in marks[:, 0]]
    return patients, views, np.concatenate(found).astype(np.float32)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("outside", type=Path)
    parser.add_argument("--pairs", type=int, default=200, help="pairs of twins to learn from")
    parser.add_argument("--steps", type=int, default=1000, help="steps, each of 16 aneurysms and 16 twins")
    parser.add_argument("--seed", type=int, default=0, help="of the draws and of the first weights")
    args = parser.parse_args()
    real = {look: real_squares(args.outside, name) for look, name in (("default look", "real"), ("other look", "real-other"))}
    rows, columns, whose = [], ["trial", "look", "Index", "view", "sac", "twin"], None
    for trial, (population, scanner, change) in TRIALS.items():
        if whose != (population, scanner):
            options = population, scanner, FRAMES, None, 0, 0
            lessons = list(draw_lessons(range(args.pairs), 2001 + args.seed, *options, workers=cpu_count()))
            whose = population, scanner
        look = taught(lessons, args.seed, args.steps, change)
        for name, (patients, views, squares) in real.items():
            squares = squares.reshape(-1, SIDE, SIDE, 1)
            shown = coarse(squares) if change == "coarse" else squares
            scores = look.predict(shown, verbose=0)["suspicion"].reshape(-1, 2).tolist()
            rows += [(trial, name, patient, view, *own) for patient, view, own in zip(patients, views, scores)]
        pd.DataFrame(rows, columns=columns).round(3).to_csv(args.outside / "ablation.csv", index=False)
        print(trial, flush=True)
