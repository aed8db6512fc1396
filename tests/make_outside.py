"""Makes the cohorts that `15_outside` reads, from public sets of real arteries and real frames.

    python tests/make_outside.py [--intra FOLDER] [--brava FOLDER] [--dias FOLDER] [--out data/outside]

IntrA (Yang 2020): FOLDER holds for each patient an .npz with `vertices` (mm; to the left, to the back, up), `faces`, and for each
annotated sac `sac_NAME`, (points, 4): points of the surface, the last number 1 on the sac and 2 on its neck; and aneurysms.csv with
the columns name and place_guess. BraVa (Wright 2013): FOLDER holds .swc or .swc.gz. DIAS (Liu 2023): FOLDER holds
dias_training/peak and dias_unlabelled/peak with .png frames. None of it is part of this repository. What is there already is kept.
"""

import argparse
import csv
import gzip
from functools import partial
from pathlib import Path

import cv2
import nibabel
import numpy as np
from joblib import Parallel, delayed
from scipy.spatial import Delaunay

from coding_vessels.phantom import PRESETS
from coding_vessels.projection import project, voxelise

LOOKS = {"": "kium", "-other": "image-intensifier"}      # folders' endings, and whose machine films them
CUBE = 0.35                                              # mm
WIDER = 0.5                                              # mm: a sac was cut out of another, slightly different surface
FILLED = -1.0                                            # mm: farther within its hull it is filled, for large ones are hollow
# An inlet was found wrong in these trees (tests/measure_inlets.py), or none at all
LEFT_OUT = "BH0008", "Set9"
PLACES = {"ACA_distal": "ACA"}


def location_of(guess, x):
    """Return a location's name for a place that may lack its side: that of the midline on which it lies, x to the left."""
    place = PLACES.get(guess, guess)
    return place if place[:2] in ("L_", "R_") else f"{'L' if x > 0 else 'R'}_{place}"


def sac_cubes(points, sac, wider):
    """Return which points lie in the convex hull of a sac and beyond the plane of its neck, both some mm wider; and its centre."""
    dome, neck = sac[sac[:, 3] == 1, :3], sac[sac[:, 3] == 2, :3]
    centre = dome.mean(axis=0)
    spread = dome - centre
    stretch = 1 + wider / np.linalg.norm(spread, axis=1, keepdims=True)
    hull = Delaunay(centre + spread * np.maximum(stretch, 0.1))
    inside = hull.find_simplex(points) >= 0
    if len(neck) > 3:
        middle = neck.mean(axis=0)
        across = np.linalg.svd(neck - middle)[2][-1]
        across *= np.sign(across @ (centre - middle))
        inside &= (points - middle) @ across > -wider
    return inside, centre


def write_volume(path, guesses, out):
    """Write the label volume of one patient, 1 vessel and 2, 3, … sacs; return its rows of the table of sacs."""
    with np.load(path) as held:
        parts = {name: held[name] for name in held}
    vertices = parts["vertices"].astype(float)
    head = voxelise(vertices, parts["faces"], CUBE)
    labels = (head.coverage > 0.5).astype(np.int16)
    cells = np.argwhere(labels > 0)
    every, rows = np.stack(np.indices(labels.shape), axis=-1), []
    for label, name in enumerate(sorted(part for part in parts if part.startswith("sac_")), 2):
        sac = parts[name]
        inside, centre = sac_cubes(cells * CUBE + head.origin, sac, WIDER)
        labels[tuple(cells[inside].T)] = label
        low, high = (((end - head.origin) / CUBE).astype(int) for end in (sac[:, :3].min(axis=0), sac[:, :3].max(axis=0)))
        box = tuple(slice(first, last + 2) for first, last in zip(low, high))
        labels[box][sac_cubes(every[box].reshape(-1, 3) * CUBE + head.origin, sac, FILLED)[0].reshape(labels[box].shape)] = label
        guess = guesses[name.removeprefix("sac_")]
        rows.append((f"{path.stem}.nii.gz", location_of(guess, centre[0] - np.median(vertices[:, 0])), label))
    to_world = np.diag([-CUBE, -CUBE, CUBE, 1.0])         # to the right, to the front, up
    to_world[:3, 3] = head.origin * (-1, -1, 1)
    nibabel.save(nibabel.Nifti1Image(labels, to_world), out / f"{path.stem}.nii.gz")
    return rows


def write_volumes(folder, out):
    """Write all label volumes and, last, the table of sacs, sacs.csv."""
    out.mkdir(parents=True, exist_ok=True)
    with open(folder / "aneurysms.csv", encoding="utf-8") as lines:
        guesses = {row["name"]: row["place_guess"] for row in csv.DictReader(lines)}
    rows = Parallel(2)(delayed(write_volume)(path, guesses, out) for path in sorted(folder.glob("*.npz")))
    with open(out / "sacs.csv", "w", newline="", encoding="utf-8") as lines:
        csv.writer(lines).writerows([("file", "location", "label"), *sum(rows, [])])


def write_trees(folder, out):
    """Unpack the trees whose injections are found."""
    out.mkdir(parents=True)
    for path in sorted([*folder.glob("*.swc"), *folder.glob("*.swc.gz")]):
        name = path.name.removesuffix(".gz")
        if name.removesuffix(".swc") in LEFT_OUT:
            continue
        text = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        (out / name).write_bytes(text)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name in ("intra", "brava", "dias"):
        parser.add_argument(f"--{name}", type=Path)
    parser.add_argument("--out", type=Path, default=Path("data/outside"))
    parser.add_argument("--workers", type=int, default=2)
    args = parser.parse_args()
    film = partial(project, seed=11, size=720, workers=args.workers)
    volumes, trees = args.out / "volumes", args.out / "trees"
    if args.intra and not (volumes / "sacs.csv").exists():
        write_volumes(args.intra, volumes)
    if args.brava and not trees.exists():
        write_trees(args.brava, trees)
    for ending, preset in LOOKS.items():
        real, healthy = args.out / f"real{ending}", args.out / f"healthy{ending}"
        if args.intra and not real.exists():
            sources = sorted(volumes.glob("*.nii.gz"))
            film(sources, real, volumes / "sacs.csv", twins=args.out / f"real{ending}-twins", scanner=PRESETS[preset][1])
        if args.brava and not healthy.exists():
            film(sorted(trees.glob("*.swc")), healthy, axes="LSP", scanner=PRESETS[preset][1])
    if args.dias and not (frames := args.out / "frames").exists():
        frames.mkdir(parents=True)
        for part in ("training", "unlabelled"):
            for path in sorted((args.dias / f"dias_{part}/peak").glob("*.png")):
                cv2.imwrite(str(frames / f"dias_{part}_{path.name}"), cv2.imread(str(path), cv2.IMREAD_GRAYSCALE))
    print(*sorted(args.out.iterdir()), sep="\n")
