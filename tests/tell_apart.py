"""Can a small network tell our arteries and frames from real ones?

    python tests/tell_apart.py TREES FRAMES [--patients 60] [--preset varied]

TREES holds healthy trees as for `tests/measure_arteries.py`, FRAMES real frames as pictures (a folder that does not exist is left
out). Prints the area under the curve on held-out patients, five seeds each: 0.5 is not at all, 1.0 always.

Trees: the carotid siphon and 45 mm of the anterior and middle cerebral arteries beyond it, as lines of one thickness in a square
of 60 mm, from the front and from the side. Calibres, small branches, the steps of voxels and the noise are taken away from both.
The siphons are judged alone as well, and how far the branches reach is printed.
Patches: squares of 96 pixels around dark vessels, frames brought to 720 pixels and JPEG quality 85, one mean and one deviation.
"""

import argparse
import os
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import cv2
import keras
import networkx as nx
import numpy as np
from keras import layers
from measure_arteries import read_tree, smoothed
from sklearn.metrics import roc_auc_score

from coding_vessels.arteries import draw_vessels, resample

REACH, SIDE, SCALE = 45.0, 120, 2.0  # mm along the vessels; pixels; pixels a millimetre


def silhouette(courses, top, side):
    """Return courses, each (n, 3) in mm, as lines seen from the front and from the side, (120, 120, 2)."""
    picture = np.zeros((SIDE, SIDE, 2), np.uint8)
    for plane, axes in enumerate(([0, 2], [1, 2])):
        own = np.zeros((SIDE, SIDE), np.uint8)
        for course in courses:
            flat = ((course - top) * (side, 1, -1))[:, axes] * SCALE + SIDE / 2
            cv2.polylines(own, [np.int32(np.round(flat * 16))], False, 255, 5, cv2.LINE_AA, 4)
        picture[..., plane] = own
    return picture


def cut(course):
    """Return a smoothed course as far as REACH, or None if it is too short."""
    course = smoothed(course) if len(course) > 11 else course
    return course[: int(REACH) + 1] if len(course) > 5 else None


def real_carotids(path):
    """Return for both carotids of a real tree: courses, the carotid's first, its top, and its side."""
    graph, points, kinds = read_tree(path)
    middle, found = np.median(points[np.isin(kinds, [2, 5])][:, 0]), []
    for side, aca, mca in ((1, 2, 3), (-1, 5, 4)):
        starts = [i for i in graph if kinds[i] == mca and any(kinds[j] != mca for j in graph[i])]
        if not starts:
            continue
        top = min(starts, key=lambda i: points[i, 1])
        below = [i for i in graph if graph.degree(i) == 1 and points[i, 2] < points[top, 2] - 12]
        below = [i for i in below if side * (points[i, 0] - middle) > 3 and nx.has_path(graph, top, i)]
        paths = [nx.shortest_path(graph, top, i, weight="weight") for i in below]
        paths = [p for p in paths if np.mean(kinds[p] == 0) >= 0.9 and len(p) > 14]
        if not paths:
            continue
        courses = [points[min(paths, key=lambda p: points[p[-1], 2])]]
        own = graph.subgraph([i for i in graph if kinds[i] in (aca, mca)] + [top] + _nearby(graph, kinds, top, aca))
        reached, ways = nx.single_source_dijkstra(own, top, cutoff=REACH + 8)
        ends = [i for i in ways if not any(reached.get(j, 1e9) > reached[i] for j in own[i] if j in ways)]
        courses += [points[ways[i]] for i in ends if reached[i] > 8]
        found.append(([c for c in map(cut, courses) if c is not None], points[top], side))
    return found


def _nearby(graph, kinds, top, aca):
    """Return the trunk's nodes between the start of the middle and that of the anterior cerebral artery."""
    starts = [i for i in graph if kinds[i] == aca and nx.has_path(graph, top, i)]
    paths = [nx.shortest_path(graph, top, i, weight="weight") for i in starts]
    return min(paths, key=len) if paths else []


def our_carotids(seed):
    """Return the same of a simulated tree."""
    tree, found = draw_vessels(np.random.default_rng([9, seed]), generations=1), []
    for letter, side in (("L", 1), ("R", -1)):
        carotid = np.concatenate([tree[f"{letter}_neck"].points, tree[f"{letter}_ICA"].points[1:]])[::-1]
        graph, places = nx.Graph(), []
        names = [name for name in tree if name[:4] in {f"{letter}_{part}" for part in ("A1", "A2", "M1", "M2", "M3", "te")}]
        for name in names:
            points = tree[name].points
            first = len(places)
            places.extend(points)
            edges = zip(range(first, len(places) - 1), range(first + 1, len(places)))
            graph.add_weighted_edges_from([(i, j, float(np.linalg.norm(places[i] - places[j]))) for i, j in edges])
            if first:
                away = np.linalg.norm(np.array(places[:first]) - points[0], axis=1)
                graph.add_edge(first, int(away.argmin()), weight=float(away.min()))
        places, top = np.array(places), carotid[0]
        root = int(np.linalg.norm(places - top, axis=1).argmin())
        reached, ways = nx.single_source_dijkstra(graph, root, cutoff=REACH + 8)
        ends = [i for i in ways if not any(reached.get(j, 1e9) > reached[i] for j in graph[i] if j in ways)]
        courses = [carotid] + [places[ways[i]] for i in ends if reached[i] > 8]
        courses = [resample(course, 1.0) for course in courses if len(course) > 5]
        found.append(([c for c in map(cut, courses) if c is not None], top, side))
    return found


def pictures(carotids, number=None):
    """Return the silhouettes of carotids, 0 to 1, with all their courses or the first few."""
    return [silhouette(courses[:number], top, side) / np.float32(255) for courses, top, side in carotids]


def extents(group):
    """Return how far the branches beyond the carotids' tops reach, in mm: mean and deviation over carotids."""
    rows = []
    for courses, top, side in (carotid for patient in group for carotid in patient if len(carotid[0]) > 1):
        points = (np.concatenate(courses[1:]) - top) * (side, 1, 1)
        low, high = points.min(axis=0), points.max(axis=0)
        rows.append([high[2], -low[2], high[0], -low[1], high[1], len(courses) - 1])
    names = ("up", "down", "outwards", "forwards", "back", "ends")
    return ", ".join(f"{name} {m:.0f} ± {d:.0f}" for name, m, d in zip(names, np.mean(rows, 0), np.std(rows, 0)))


def patches(frame, rng, number=6):
    """Return squares around dark vessels of a frame, (number, 96, 96, 1)."""
    frame = cv2.resize(frame, (720, 720), interpolation=cv2.INTER_AREA)
    frame = cv2.imdecode(cv2.imencode(".jpg", frame, [cv2.IMWRITE_JPEG_QUALITY, 85])[1], cv2.IMREAD_GRAYSCALE)
    dark = cv2.morphologyEx(frame, cv2.MORPH_BLACKHAT, np.ones((21, 21)))[120:600, 120:600]
    rows, columns = np.nonzero(dark >= np.quantile(dark, 0.97))
    chosen = rng.integers(len(rows), size=number)
    squares = [frame[72 + r : 168 + r, 72 + c : 168 + c].astype(np.float32) for r, c in zip(rows[chosen], columns[chosen])]
    return [((s - s.mean()) / (s.std() + 1))[..., None] for s in squares]


def auroc(ours, real, seed, epochs):
    """Return how well a small network tells ours from real ones; both are lists of lists, one for each patient."""
    keras.utils.set_random_seed(seed)
    rng, train, test = np.random.default_rng(seed), [], []
    for label, group in enumerate((ours, real)):
        order = rng.permutation(len(group))
        for place, patient in enumerate(order):
            (test if place < len(order) // 3 else train).extend((picture, label) for picture in group[patient])
    x, y = (np.array(part, np.float32) for part in zip(*train))
    picture = keras.Input(x.shape[1:])
    moved = layers.RandomTranslation(0.06, 0.06, fill_mode="nearest")(layers.RandomFlip("horizontal")(picture))
    h = layers.Conv2D(16, 5, 2, activation="relu")(moved)
    h = layers.BatchNormalization()(layers.Conv2D(32, 3, 2, activation="relu")(layers.BatchNormalization()(h)))
    h = layers.BatchNormalization()(layers.Conv2D(48, 3, 2, activation="relu")(h))
    h = layers.Dropout(0.3)(layers.Concatenate()([layers.GlobalMaxPooling2D()(h), layers.GlobalAveragePooling2D()(h)]))
    model = keras.Model(picture, layers.Dense(1, activation="sigmoid")(h))
    model.compile(keras.optimizers.AdamW(1e-3), "binary_crossentropy")
    weight = {0: 1.0, 1: float((y == 0).sum() / (y == 1).sum())}
    model.fit(x, y, 16, epochs, verbose=0, class_weight=weight)
    x, y = (np.array(part, np.float32) for part in zip(*test))
    return roc_auc_score(y, model.predict(x, verbose=0)[:, 0])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("trees", type=Path)
    parser.add_argument("frames", type=Path)
    parser.add_argument("--patients", type=int, default=60)
    parser.add_argument("--preset", default="varied", help="of the simulated frames")
    args = parser.parse_args()
    pairs = {}
    files = sorted([*args.trees.glob("*.swc"), *args.trees.glob("*.swc.gz")])
    if files:
        real = [p for p in map(real_carotids, files) if p]
        ours = [our_carotids(seed) for seed in range(args.patients)]
        print(f"branches, ours: {extents(ours)}\nbranches, real: {extents(real)}")
        for name, number in (("trees", None), ("siphons alone", 1)):
            pairs[name] = *([pictures(patient, number) for patient in group] for group in (ours, real)), 40
    frames = sorted(args.frames.glob("*.png"))
    if frames:
        from coding_vessels.phantom import PRESETS, draw_phantom

        rng = np.random.default_rng(0)
        real = [patches(cv2.imread(str(path), cv2.IMREAD_GRAYSCALE), rng) for path in frames]
        drawn = [draw_phantom([17, seed], 720, *PRESETS[args.preset]) for seed in range(args.patients)]
        ours = [patches(frame, rng, 3) for phantom in drawn for frame in phantom.frames[::5]]
        pairs["patches"] = ours, real, 25
    for name, (ours, real, epochs) in pairs.items():
        found = [auroc(ours, real, seed, epochs) for seed in range(5)]
        print(f"{name}: {len(ours)} of ours, {len(real)} real; AUROC {np.mean(found):.2f} ({min(found):.2f} to {max(found):.2f})", flush=True)
