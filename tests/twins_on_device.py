"""Pairs of twins on a device, with JAX: changed there at random, and made into what a network learns from.

A shard is a dict of arrays of n pairs, as `coding_vessels.batches.draw_pair` draws them: frames, uint8 (n, 2, 8, size, size), labels,
(n, 2, 22), marks, (n, 2, 48, 5), -1 where there is none, and masks, uint8 (n, 2, 8, size // 4, size // 4); what `shard_of` adds to
them says which squares show an aneurysm that the twin lacks. The changes are those of `augment_study` and `square_batches`.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax, random

from coding_vessels.anatomy import FRONTAL, LOCATIONS, MIRROR_LABELS, MIRROR_VIEWS, MIRRORED, SHOWN, STRUCTURES, VIEWS, structure_of
from coding_vessels.batches import CELL, MASK, REACH, SQUARE, Augmentation, draw_presence

AUGMENTATION = Augmentation()
MARKS = 48                       # a patient at most
ROWS = 16                        # squares a pair, on average, at most
STRUCTURE = np.array([[structure_of(place, view) if SHOWN[i, k] else 0 for i, place in enumerate(LOCATIONS)]
                      for k, view in enumerate(VIEWS)])


def draw_presences(missing, count=4096):
    """Return which views studies have, (count, 8), bool; in a share `missing` of them some are hidden."""
    rng = np.random.default_rng(5)
    every = np.ones(len(VIEWS), bool)
    return jnp.asarray(np.stack([draw_presence(rng) if rng.random() < missing else every for _ in range(count)]))


@jax.jit
def grey_levels(frames):
    """Return mean and deviation of the grey levels, 0 to 1, of each frame, both (n, 2, 8)."""
    def own(pair):
        grey = pair.astype(jnp.float32) / 255
        return grey.mean((2, 3)), jnp.sqrt(grey.var((2, 3)) + 1e-3)
    return lax.map(own, frames)


def square_rows(labels, marks):
    """Return (n * ROWS, 6) rows, of which the first so many count: pair, the twin that has it, view, location, x, y."""
    rows, count = np.zeros((len(labels) * ROWS, 6), np.float32), 0
    for pair, twin in np.ndindex(*labels.shape[:2]):
        for view, place, x, y, _ in marks[pair, twin]:
            if view >= 0 and not labels[pair, 1 - twin, 1 + int(place)] and count < len(rows):
                rows[count] = pair, twin, view, place, x, y
                count += 1
    return rows, np.int32(max(count, 1))


def shapes_of(pairs, size):
    """Return what a shard of so many pairs of frames of so many pixels is made of, by name."""
    shape, views = jax.ShapeDtypeStruct, (pairs, 2, len(VIEWS))
    return {"frames": shape((*views, size, size), np.uint8), "labels": shape((pairs, 2, 1 + len(LOCATIONS)), np.uint8),
            "marks": shape((pairs, 2, MARKS, 5), np.float32), "masks": shape((*views, size // MASK, size // MASK), np.uint8),
            "rows": shape((pairs * ROWS, 6), np.float32), "count": shape((), np.int32),
            "means": shape(views, np.float32), "deviations": shape(views, np.float32)}


def shard_of(pairs):
    """Return the shard of pairs as `draw_pair` returns them, on the device."""
    frames, labels, marks, masks = zip(*pairs)
    held = np.full((len(pairs), 2, MARKS, 5), -1, np.float32)
    for i, both in enumerate(marks):
        for twin, own in enumerate(both):
            held[i, twin, : len(own)] = own[:MARKS]
    shard = {"frames": np.stack(frames), "labels": np.stack(labels), "marks": held, "masks": np.stack(masks)}
    shard["rows"], shard["count"] = square_rows(shard["labels"], held)
    shard = jax.device_put(shard)
    shard["means"], shard["deviations"] = grey_levels(shard["frames"])
    return jax.block_until_ready(shard)


def sample(pictures, y, x, first=...):
    """Return what lies at fractional places of pictures, (…, height, width), between their pixels; beyond the edge, the edge."""
    height, width = pictures.shape[-2:]
    y, x = jnp.clip(y, 0, height - 1), jnp.clip(x, 0, width - 1)
    top, left = jnp.floor(y).astype(jnp.int32), jnp.floor(x).astype(jnp.int32)
    bottom, right = jnp.minimum(top + 1, height - 1), jnp.minimum(left + 1, width - 1)
    down, across = y - top, x - left
    first = first if isinstance(first, tuple) else (first,)

    def between(row):
        one, other = (pictures[(*first, row, column)].astype(jnp.float32) for column in (left, right))
        return one * (1 - across) + other * across

    return between(top) * (1 - down) + between(bottom) * down


def draw_maps(marks, size):
    """Return the maps of `coding_vessels.batches.draw_maps` for marks, (48, 5)."""
    cells, grid = size // CELL, jnp.arange(size // CELL)
    view, place = marks[:, 0].astype(jnp.int32), marks[:, 1].astype(jnp.int32)
    x = jnp.where(jnp.asarray(MIRRORED)[view], size - 1 - marks[:, 2], marks[:, 2])
    column, row = (jnp.floor((v + 0.5) / CELL).astype(jnp.int32) for v in (x, marks[:, 3]))
    inside = (marks[:, 0] >= 0) & (row >= 0) & (row < cells) & (column >= 0) & (column < cells)
    width = jnp.maximum(1.0, 0.6 * marks[:, 4] / CELL)[:, None, None]
    far = (grid[:, None] - row[:, None, None]) ** 2 + (grid[None, :] - column[:, None, None]) ** 2
    peaks = jnp.where(inside[:, None, None], jnp.exp(-far / (2 * width**2)), 0)
    number = view * len(STRUCTURES) + jnp.asarray(STRUCTURE)[view, place]
    maps = jax.ops.segment_max(peaks, jnp.where(inside, number, 0), len(VIEWS) * len(STRUCTURES))
    maps = jnp.maximum(maps, 0).reshape(len(VIEWS), len(STRUCTURES), cells, cells)
    return maps.transpose(0, 2, 3, 1)


def mirror(frames, labels, marks, flip):
    """Return the mirrored patient of a pair if `flip` is true, else the same."""
    size, frontal = frames.shape[-1], jnp.asarray(FRONTAL)
    other = frames[:, MIRROR_VIEWS]
    other = jnp.where(frontal[None, :, None, None], other[..., ::-1], other)
    view, place = (jnp.maximum(marks[..., i], 0).astype(jnp.int32) for i in (0, 1))
    turned = jnp.stack([jnp.asarray(MIRROR_VIEWS)[view].astype(jnp.float32), jnp.asarray(MIRROR_LABELS)[place + 1] - 1.0,
                        jnp.where(frontal[view], size - 1 - marks[..., 2], marks[..., 2]), marks[..., 3], marks[..., 4]], -1)
    marks = jnp.where(flip & (marks[..., :1] >= 0), turned, marks)
    return jnp.where(flip, other, frames), jnp.where(flip, labels[:, MIRROR_LABELS], labels).astype(jnp.float32), marks


def draw_moves(key, size):
    """Return matrices, (8, 2, 2), and steps, (8, 2), that turn, stretch and shift each view: to x and y; stretch; and logarithms."""
    by = AUGMENTATION
    draws = random.uniform(key, (len(VIEWS), 5), minval=-1, maxval=1)
    turn, scale = jnp.deg2rad(draws[:, 0] * by.turn), 1 + draws[:, 1] * by.scale
    a, b, middle = scale * jnp.cos(turn), scale * jnp.sin(turn), (size - 1) / 2
    matrix = jnp.stack([jnp.stack([a, b], -1), jnp.stack([-b, a], -1)], -2)
    step = jnp.stack([(1 - a) * middle - b * middle, b * middle + (1 - a) * middle], -1) + draws[:, 3:] * by.shift * size
    return matrix, step, scale, draws[:, 2] * by.gamma


def change_pair(key, frames, labels, marks, presences):
    """Return frames, labels and maps of a pair, both twins changed alike, as `pair_targets` does."""
    size, keys = frames.shape[-1], random.split(key, 5)
    frames, labels, marks = mirror(frames, labels, marks, random.bernoulli(keys[0], AUGMENTATION.mirror))
    matrix, step, scale, gamma = draw_moves(keys[1], size)
    ys, xs = jnp.mgrid[:size, :size].astype(jnp.float32)

    def moved(both, back, step):
        u, v = xs - step[0], ys - step[1]
        return sample(both, back[1, 0] * u + back[1, 1] * v, back[0, 0] * u + back[0, 1] * v)

    grey = jax.vmap(moved, (1, 0, 0), 1)(frames, jnp.linalg.inv(matrix), step) / 255
    shade = random.normal(keys[2], (len(VIEWS), 4, 4)) * AUGMENTATION.shade
    grey = 255 * grey ** jnp.exp(gamma)[None, :, None, None] + jax.image.resize(shade, (len(VIEWS), size, size), "cubic")
    present = presences[random.randint(keys[3], (), 0, presences.shape[0])]
    frames = jnp.floor(jnp.clip(grey, 0, 255) + 0.5).astype(jnp.uint8) * present[None, :, None, None].astype(jnp.uint8)
    view = jnp.maximum(marks[..., 0], 0).astype(jnp.int32)
    place = jnp.einsum("tmi,tmji->tmj", marks[..., 2:4], matrix[view]) + step[view]
    marks = jnp.concatenate([marks[..., :2], place, marks[..., 4:] * scale[view][..., None]], -1)
    maps = jnp.where(present[None, :, None, None, None], jax.vmap(lambda own: draw_maps(own, size))(marks), -1)
    located = jnp.where((jnp.asarray(SHOWN) & present).any(1), labels[:, 1:], -1)
    return frames, jnp.concatenate([(located == 1).any(1, keepdims=True).astype(jnp.float32), located], 1), maps


def studies(key, shard, chosen, presences):
    """Return frames, (2n, 8, size, size), labels and maps of n pairs of a shard; each two neighbours are twins."""
    parts = (shard[name][chosen] for name in ("frames", "labels", "marks"))
    made = jax.vmap(change_pair, (0, 0, 0, 0, None))(random.split(key, len(chosen)), *parts, presences)
    return [part.reshape(-1, *part.shape[2:]) for part in made]


def cut_square(key, shard, row):
    """Return the square about one row of a shard in both twins, (2, 64, 64), and its masks, (2, 16, 16)."""
    pair, twin, view = (row[i].astype(jnp.int32) for i in range(3))
    keys = random.split(key, 4)
    right, down, turn, scale = random.uniform(keys[0], (4,), minval=-1, maxval=1)
    turn, scale = jnp.deg2rad(10 * turn), jnp.exp(0.1 * scale)
    flip = jnp.where(jnp.asarray(MIRRORED)[view], -1.0, 1.0)
    over = random.bernoulli(keys[1], 0.3)                                # rows and columns change places

    def places(side, cell):
        ticks = jnp.arange(side) * cell + (cell - 1) / 2 - (SQUARE - 1) / 2
        v, u = jnp.meshgrid(ticks, ticks, indexing="ij")
        u, v = jnp.where(over, v, u) * flip, jnp.where(over, u, v)
        x = scale * (jnp.cos(turn) * u - jnp.sin(turn) * v) + row[4] + REACH * right
        return scale * (jnp.sin(turn) * u + jnp.cos(turn) * v) + row[5] + REACH * down, x

    pixels, cells = places(SQUARE, 1), [(at + 0.5) / MASK - 0.5 for at in places(SQUARE // MASK, MASK)]
    gain, level = jnp.exp(0.15 * random.normal(keys[2])), 0.15 * random.normal(keys[3])

    def seen(twin):
        here = pair, twin, view
        grey = (sample(shard["frames"], *pixels, here) / 255 - shard["means"][here]) / shard["deviations"][here]
        return grey * gain + level, sample(shard["masks"], *cells, here) / 255

    return [jnp.stack(both) for both in zip(seen(twin), seen(1 - twin))]


def squares(key, shard, count):
    """Return squares, (2 * count, 64, 64, 1), with an aneurysm each and of its twin, and what `closer_look` should say of them."""
    keys = random.split(key, 3)
    rows = shard["rows"][random.randint(keys[0], (count,), 0, shard["count"])]
    made = jax.vmap(cut_square, (0, None, 0))(random.split(keys[1], count), shard, rows)
    seen, masks = (part.reshape(2 * count, *part.shape[2:]) for part in made)
    return seen[..., None], {"suspicion": (masks.max((1, 2)) > 0.5).astype(jnp.float32)[:, None], "mask": masks}
