"""Makes the cohorts that `15_outside` reads, from public sets of real arteries and real frames.

    python tests/make_outside.py [--intra FOLDER] [--brava FOLDER] [--dias FOLDER] [--out data/outside]

IntrA (Yang 2020): FOLDER holds for each patient an .npz with `vertices` (mm; to the left, to the back, up), `faces`, and for each
annotated sac `sac_NAME`, (points, 4): points of the surface, the last number 1 on the sac and 2 on its neck; and aneurysms.csv with
the columns name and place_guess. BraVa (Wright 2013): FOLDER holds .swc or .swc.gz; these healthy people are filmed as they are, and
again with one drawn sac each, six patients a tree, so that every size comes at every place. DIAS (Liu 2023): FOLDER holds
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
from scipy.sparse.csgraph import dijkstra
from scipy.spatial import Delaunay

from coding_vessels.anatomy import views_of
from coding_vessels.phantom import PRESETS
from coding_vessels.projection import INJECTIONS, fill, find_inlets, project, read_tree, tree_network, turn_axes, voxelise

LOOKS = {"": "kium", "-other": "image-intensifier"}      # folders' endings, and whose machine films them
CUBE = 0.35                                              # mm
WIDER = 0.5                                              # mm: a sac was cut out of another, slightly different surface
FILLED = -1.0                                            # mm: farther within its hull it is filled, for large ones are hollow
# An inlet was found wrong in these trees (tests/measure_inlets.py), or none at all
LEFT_OUT = "BH0008", "Set9"
PLACES = {"ACA_distal": "ACA"}
AXES = "LSP"                                             # of BraVa's trees
DRAWN = 3, 4, 5, 7, 9, 12                                # mm: sizes of drawn sacs


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


def ways_of(tree):
    """Return the rows of a tree from the inlet to the left and the right carotid terminus, to the basilar tip, and on from each
    terminus to the vessel farthest to its side and to the highest one near the midline; and what each injection fills, (n, 4)."""
    network = tree_network(tree)
    inlets = find_inlets(network)
    found = dijkstra(network.ways, indices=list(inlets.values()), return_predecessors=True)
    distance, before = (dict(zip(inlets, rows)) for rows in found)
    filling, _, marks = fill(network, inlets)
    x, _, z = tree.points.T
    x = x - (x[marks["LI"]] + x[marks["RI"]]) / 2

    def way(name, end):
        rows = [int(end)]
        while rows[-1] != inlets[name]:
            rows.append(int(before[name][rows[-1]]))
        return np.array(rows[::-1])

    ways = {"BA": way(back := next(name for name in marks if name[1] == "V"), marks[back])}
    for side, sign in (("L", 1), ("R", -1)):
        name = side + "I"
        ways[side, "ICA"] = own = way(name, marks[name])
        nearer = distance[name] < distance["RI" if name == "LI" else "LI"]
        for artery, end in (("MCA", (x * sign).argmax()), ("ACA", np.where(nearer & (np.abs(x) < 12), z, -np.inf).argmax())):
            ways[side, artery] = way(name, end)[len(own) - 1 :]
    return ways, filling


def along(points, rows):
    """Return how far each row of a way lies from its first, in mm."""
    return np.append(0, np.cumsum(np.linalg.norm(np.diff(points[rows], axis=0), axis=1)))


def places_of(tree, mirrored, rng):
    """Return up to six places for sacs: location, row of the tree, and direction to the left side's dome (None: outside of the
    bend). Places that their injection does not fill are left out."""
    (ways, filling), (left, right) = ways_of(tree), "RL" if mirrored else "LR"
    near = lambda rows, mm: rows[np.abs(along(tree.points, rows) - mm).argmin()]
    back = lambda rows, mm: near(rows, along(tree.points, rows)[-1] - mm)
    middle = np.median(tree.points[:, 0])
    crossing = ways[right, "ACA"][along(tree.points, ways[right, "ACA"]) < 28]
    places = [
        (f"{left}_ICA", back(ways[left, "ICA"], rng.uniform(4, 24)), None),
        (f"{right}_ICA", ways[right, "ICA"][-1], (0.3, 0, 1)),
        (f"{right}_PCOM", back(ways[right, "ICA"], rng.uniform(6, 9)), (0.4, 0.8, -0.5)),
        (f"{left}_MCA", near(ways[left, "MCA"], rng.uniform(14, 20)), (0.9, -0.1, 0.2)),
        (f"{right}_ACOM", crossing[np.abs(tree.points[crossing, 0] - middle).argmin()], (-0.3, -0.6, 0.3)),
        ("BA", ways["BA"][-1], (0, 0, 1)),
    ]
    own = [[INJECTIONS.index(view[:2]) for view in views_of(location)] for location, _, _ in places]
    return [place for place, shown in zip(places, own) if filling[place[1], shown].max() > 0.5]


def write_sick(trees, out):
    """Write each tree six times, and last sacs.csv, which says what is drawn on each."""
    out.mkdir(exist_ok=True)
    rows = []
    for number, path in enumerate(sorted(trees.glob("*.swc"))):
        tree, rng = read_tree(path, AXES), np.random.default_rng([11, number])
        for place, (location, row, direction) in enumerate(places_of(tree, number % 2, rng)):
            point, size = tree.points[row], DRAWN[(place + number) % len(DRAWN)]
            if direction is None:
                beside = tree.points[np.linalg.norm(tree.points - point, axis=1) < 5]
                outward = point - beside.mean(axis=0)
            else:
                outward = np.multiply(direction, (-1 if location[0] == "R" else 1, 1, 1))
            outward = outward / np.linalg.norm(outward) + rng.normal(0, 0.4, 3)
            centre = point + outward / np.linalg.norm(outward) * (tree.radii[row] + 0.3 * size)
            name = f"{path.stem}-{location}.swc"
            (out / name).write_bytes(path.read_bytes())
            rows.append((name, location, *turn_axes(centre[None], AXES)[0].round(2), size))
    with open(out / "sacs.csv", "w", newline="", encoding="utf-8") as lines:
        csv.writer(lines).writerows([("file", "location", "x", "y", "z", "diameter_mm"), *rows])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name in ("intra", "brava", "dias"):
        parser.add_argument(f"--{name}", type=Path)
    parser.add_argument("--out", type=Path, default=Path("data/outside"))
    parser.add_argument("--workers", type=int, default=2)
    args = parser.parse_args()
    film = partial(project, seed=11, size=720, workers=args.workers)
    volumes, trees, sick = (args.out / name for name in ("volumes", "trees", "sick"))
    if args.intra and not (volumes / "sacs.csv").exists():
        write_volumes(args.intra, volumes)
    if args.brava and not trees.exists():
        write_trees(args.brava, trees)
    if args.brava and not (sick / "sacs.csv").exists():
        write_sick(trees, sick)
    for ending, preset in LOOKS.items():
        real, healthy = args.out / f"real{ending}", args.out / f"healthy{ending}"
        if args.intra and not real.exists():
            sources = sorted(volumes.glob("*.nii.gz"))
            film(sources, real, volumes / "sacs.csv", twins=args.out / f"real{ending}-twins", scanner=PRESETS[preset][1])
        if args.brava and not healthy.exists():
            film(sorted(trees.glob("*.swc")), healthy, axes=AXES, scanner=PRESETS[preset][1])
        if args.brava and not (drawn := args.out / f"drawn{ending}").exists():
            film(sorted(sick.glob("*.swc")), drawn, sick / "sacs.csv", axes=AXES, scanner=PRESETS[preset][1])
    if args.dias and not (frames := args.out / "frames").exists():
        frames.mkdir(parents=True)
        for part in ("training", "unlabelled"):
            for path in sorted((args.dias / f"dias_{part}/peak").glob("*.png")):
                cv2.imwrite(str(frames / f"dias_{part}_{path.name}"), cv2.imread(str(path), cv2.IMREAD_GRAYSCALE))
    print(*sorted(args.out.iterdir()), sep="\n")
