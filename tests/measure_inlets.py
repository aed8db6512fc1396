"""Does `project` find who fills what in real trees? python tests/measure_inlets.py FOLDER

FOLDER holds the artery trees of BraVa (Wright 2013), .swc or .swc.gz: types 3 and 4 are the middle cerebral arteries. A tree is right
if each of them is filled by the carotid of its own side to nine tenths or more.
"""

import gzip
import sys
from pathlib import Path

import numpy as np
from scipy.spatial import cKDTree

from coding_vessels.projection import INJECTIONS, fill, find_inlets, read_tree, tree_network


def own_shares(path):
    """Return how far the left and the right carotid fill their middle cerebral arteries, 0 to 1."""
    tree = read_tree(path, "LSP")
    rows = np.loadtxt(gzip.open(path) if path.suffix == ".gz" else path, comments="#", ndmin=2)
    types = rows[rows[:, 5] > 0, 1]
    network = tree_network(tree)
    contrast = fill(network, find_inlets(network))[0]
    kind = types[cKDTree(tree.points).query(network.points)[1]]
    left, right = sorted((3, 4), key=lambda number: -np.median(network.points[kind == number, 0]))
    return [contrast[kind == number, INJECTIONS.index(name)].mean() for number, name in ((left, "LI"), (right, "RI"))]


shares = {}
for path in sorted([*Path(sys.argv[1]).glob("*.swc"), *Path(sys.argv[1]).glob("*.swc.gz")]):
    try:
        shares[path.name] = own_shares(path)
    except ValueError as error:
        print(f"{path.name}: {error}")
        shares[path.name] = (0, 0)
right = [name for name, share in shares.items() if min(share) >= 0.9]
print(f"{len(right)} of {len(shares)} trees are right")
for name in shares.keys() - set(right):
    print(name, np.round(shares[name], 2).tolist())
