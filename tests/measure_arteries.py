"""Measures real artery trees and simulated ones alike: python tests/measure_arteries.py FOLDER [--patients 60]

FOLDER holds healthy trees as SWC files (.swc or .swc.gz) of the BraVa set (Wright 2013): millimetres, y up, z to the back,
type 0 for trunks, 2 and 5 ACA, 3 and 4 MCA, 6 and 7 PCA. Prints quartiles of both and the share of rows whose simulated
median lies within the real quartiles. `nbs/01_arteries.ipynb` quotes the real ones. Needs networkx.
"""

import argparse
import gzip
import tempfile
from pathlib import Path

import networkx as nx
import numpy as np
import pandas as pd
from scipy.interpolate import splev, splprep
from scipy.sparse.csgraph import dijkstra

from coding_vessels import projection
from coding_vessels.arteries import draw_vessels, resample
from coding_vessels.phantom import PRESETS
from coding_vessels.projection import tree_network, write_tree


def smoothed(path, noise=0.3):
    """Return a centreline without the steps of its voxels, a point a millimetre."""
    path = path[np.concatenate([[True], np.linalg.norm(np.diff(path, axis=0), axis=1) > 1e-6])]
    spline, _ = splprep(path.T, s=len(path) * noise**2)
    return resample(np.stack(splev(np.linspace(0, 1, 8 * len(path)), spline), 1), 1.0)


def bends(course):
    """Return the change of direction in degrees at each inner point."""
    steps = np.diff(course, axis=0)
    steps /= np.linalg.norm(steps, axis=1, keepdims=True)
    return np.degrees(np.arccos(np.clip((steps[1:] * steps[:-1]).sum(1), -1, 1)))


def tortuosity(course, first, last):
    """Return length over chord between two distances in mm from the start, or None if it is shorter."""
    return (last - first) / np.linalg.norm(course[last] - course[first]) if len(course) > last else None


def overlaps(course, across, width=3.6):
    """Return whether two limbs of the siphon lie over each other in a projection onto two axes."""
    flat = course[:46, across]
    number = np.arange(len(flat))
    far = np.abs(np.subtract.outer(number, number)) > 10
    return bool((np.linalg.norm(flat[:, None] - flat, axis=2)[far] < width).any())


def measure_siphon(course, rows):
    """Add a carotid's figures; its course comes upstream from the terminus."""
    if len(course) < 61:
        return
    for last in (20, 40, 60):
        rows.setdefault(f"siphon, tortuosity of the last {last} mm", []).append(tortuosity(course, 0, last))
    rows.setdefault("siphon, bend, degrees/mm", []).append(bends(course[:46]).mean())
    rows.setdefault("siphon, sharpest 5 mm, degrees", []).append(np.convolve(bends(course[:46]), np.ones(5), "valid").max())
    for axis, name in enumerate(("from side to side", "from front to back", "from top to bottom")):
        rows.setdefault(f"siphon, {name}, mm", []).append(np.ptp(course[:46, axis]))
    rows.setdefault("siphon, limbs overlap from the front", []).append(overlaps(course, [0, 2]))
    rows.setdefault("siphon, limbs overlap from the side", []).append(overlaps(course, [1, 2]))
    steps = np.diff(course[:46], axis=0)
    rows.setdefault("siphon, share end-on from the front", []).append((np.abs(steps[:, 1]) > 0.9).mean())


def measure_branch(name, course, first, last, rows):
    """Add tortuosity and bend of a part of a branch."""
    if len(course) > last:
        rows.setdefault(f"{name}, tortuosity", []).append(tortuosity(course, first, last))
        rows.setdefault(f"{name}, bend, degrees/mm", []).append(bends(course[first : last + 1]).mean())


PARTS = {"ACA": (("A1", 0, 14), ("A2", 16, 50)), "MCA": (("M1", 1, 17), ("M4", 60, 100)), "PCA": (("P2", 5, 30),)}


def read_tree(path):
    """Return a tree's graph, points (x to the side, y back, z up) and types."""
    opened = gzip.open(path, "rt") if path.suffix == ".gz" else open(path)
    table = np.array([line.split()[:7] for line in opened if line.strip() and not line.startswith("#")], float)
    row = {int(number): i for i, number in enumerate(table[:, 0])}
    points, graph = table[:, [2, 4, 3]], nx.Graph()
    for i, parent in enumerate(table[:, 6].astype(int)):
        graph.add_node(i)
        if parent > 0:
            graph.add_edge(i, row[parent], weight=float(np.linalg.norm(points[i] - points[row[parent]])))
    return graph, points, table[:, 1].astype(int)


def measure_middle(graph, points, ways, reached, side, rows):
    """Add where M1 divides into two that each feed a fifth, and how far outwards its branches run over the insula."""
    order = sorted(ways, key=reached.get)
    parent = {i: ways[i][-2] for i in order[1:]}
    fed, kids = dict.fromkeys(order, 0.0), {i: [] for i in order}
    for i in reversed(order[1:]):
        fed[parent[i]] += fed[i] + reached[i] - reached[parent[i]]
        kids[parent[i]].append(i)
    start = fork = order[0]
    while kids[fork] and sum(fed[i] > 0.2 * fed[start] for i in kids[fork]) < 2:
        fork = max(kids[fork], key=fed.get)
    rows.setdefault("M1, length to where it divides, mm", []).append(reached[fork])
    insula = [i for i in order if 25 < reached[i] - reached[fork] < 50 and fork in ways[i]]
    if insula:
        outwards = side * (points[insula, 0] - points[start, 0])
        rows.setdefault("insula, outwards of the terminus, mm", []).append(np.median(outwards))


def measure_real(path, rows):
    """Add the figures of a real tree."""
    graph, points, kinds = read_tree(path)
    middle = np.median(points[np.isin(kinds, [2, 5])][:, 0])
    for side, types in ((1, {"ACA": 2, "MCA": 3, "PCA": 6}), (-1, {"ACA": 5, "MCA": 4, "PCA": 7})):
        for name, kind in types.items():
            own = {i for i in graph if kinds[i] == kind}
            starts = [i for i in own if any(kinds[j] != kind for j in graph[i])]
            if not starts:
                continue
            start = min(starts, key=lambda i: points[i, 1])
            reached, paths = nx.single_source_dijkstra(graph.subgraph(own), start)
            course = points[paths[max(reached, key=reached.get)]]
            if len(course) > 11:
                for part, first, last in PARTS[name]:
                    measure_branch(part, smoothed(course), first, last, rows)
            if name == "MCA":
                measure_middle(graph, points, paths, reached, side, rows)
                _measure_carotid(graph, points, kinds, start, side, middle, rows)


def _measure_carotid(graph, points, kinds, top, side, middle, rows):
    below = [i for i in graph if graph.degree(i) == 1 and points[i, 2] < points[top, 2] - 12 and side * (points[i, 0] - middle) > 3]
    paths = [nx.shortest_path(graph, top, i, weight="weight") for i in below if nx.has_path(graph, top, i)]
    paths = [p for p in paths if np.mean(kinds[p] == 0) >= 0.9 and (points[p, 1] < points[top, 1] + 30).all() and len(p) > 14]
    if paths:
        course = smoothed(points[min(paths, key=lambda p: points[p[-1], 2])]) * (side, 1, 1)
        if np.ptp(course[:41, 0]) < 14:  # else it ran over to the other side
            measure_siphon(course, rows)


def measure_simulated(seed, rows):
    """Add the figures of a simulated tree."""
    tree = draw_vessels(np.random.default_rng([9, seed]), generations=2)
    for letter, side in (("L", 1), ("R", -1)):
        points = lambda name: tree[f"{letter}_{name}"].points
        carotid = np.concatenate([points("neck"), points("ICA")[1:]])[::-1] * (side, 1, 1)
        measure_siphon(resample(carotid, 1.0), rows)
        stem = tree[f"{letter}_M3_inferior_1"]
        child = next((v for name, v in tree.items() if name.startswith(f"{stem.name}.")), None)
        measure_branch("A1", resample(points("A1"), 1.0), 0, 14, rows)
        measure_branch("A2", resample(points("A2"), 1.0), 2, 36, rows)
        measure_branch("M1", resample(points("M1"), 1.0), 1, 17, rows)
        measure_branch("P2", resample(points("P2"), 1.0), 0, 25, rows)
        top = points("ICA")[-1]
        rows.setdefault("M1, length to where it divides, mm", []).append(tree[f"{letter}_M1"].length)
        beyond = [v.points[40:80, 0] for name, v in tree.items() if name.startswith(f"{letter}_M3") and "." not in name]
        rows.setdefault("insula, outwards of the terminus, mm", []).append(side * (np.median(np.concatenate(beyond)) - top[0]))
        if child is not None:
            trunk = points("M2_inferior")
            trunk = trunk[: np.linalg.norm(trunk - stem.points[0], axis=1).argmin()]
            course = np.concatenate([points("M1"), trunk[1:], stem.points, child.points[1:]])
            measure_branch("M4", resample(course, 1.0), 60, 100, rows)


def measure_branching(network, rows):
    """Add how much wider arteries are where they branch than 4 to 8 mm away, for arteries of 0.7 to 1.1 mm radius."""
    for number in np.flatnonzero((np.diff(network.ways.indptr) > 2) & (network.radii >= 0.7)):
        away = dijkstra(network.ways, indices=number, limit=10)
        around = network.radii[(away >= 4) & (away <= 8)]
        if len(around) > 3 and 0.7 <= (usual := np.quantile(around, 0.8)) < 1.1:
            rows.setdefault("where arteries branch, width over that beside", []).append(network.radii[away <= 1].max() / usual)


def network_of_drawn(vessels):
    """Return the network of a simulated tree, by way of a file, as real ones come."""
    with tempfile.TemporaryDirectory() as folder:
        write_tree(Path(folder) / "tree.swc", vessels)
        return tree_network(projection.read_tree(Path(folder) / "tree.swc"))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--patients", type=int, default=60)
    parser.add_argument("--preset", choices=PRESETS, default="kium", help="for where arteries branch")
    args = parser.parse_args()
    real, simulated = {}, {}
    for path in sorted([*args.folder.glob("*.swc"), *args.folder.glob("*.swc.gz")]):
        measure_real(path, real)
        measure_branching(tree_network(projection.read_tree(path, "LSP")), real)
    for seed in range(args.patients):
        measure_simulated(seed, simulated)
        population = PRESETS[args.preset][0]
        measure_branching(network_of_drawn(draw_vessels(np.random.default_rng([9, seed]), population)), simulated)
    rows = {}
    for name, values in real.items():
        shares = "overlap" in name
        summary = lambda v: [np.mean(v)] * 3 if shares else np.percentile(v, [25, 50, 75])
        rows[name] = [len(values), *summary(values), *summary(simulated[name])]
    columns = ["n", "real 25 %", "real 50 %", "real 75 %", "ours 25 %", "ours 50 %", "ours 75 %"]
    table = pd.DataFrame(rows, index=columns).T
    inside = (table["real 25 %"] <= table["ours 50 %"]) & (table["ours 50 %"] <= table["real 75 %"])
    wide = table["ours 75 %"] - table["ours 25 %"] >= 0.75 * (table["real 75 %"] - table["real 25 %"])
    print(table.round(2).assign(inside=inside, wide=wide).to_string())
    print(f"median within the real quartiles: {inside.mean():.0%}; spread at least three quarters of the real one: {wide.mean():.0%}")
