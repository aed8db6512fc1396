"""Does a vessel-segmentation network trained on phantoms alone work on real angiograms?

    python tests/transfer_segmentation.py --real FOLDER [FOLDER] --out RUN [--studies 200] [--epochs 4] [--seed 0]

FOLDER holds `labels/label_sN.png`, the arteries of sequence N, and its frames as `images/image_sN_iK.png`, the layout
of the DIAS dataset (arXiv 2306.12153); or `labels/sN.png` and `minimum/sN.png`, where the frames have been reduced to
their pixel-wise minimum, as is done here. Nothing of it is used in training. RUN gets the weights and scores.json.
"""

import argparse
import json
import os
from dataclasses import replace
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import cv2
import joblib
import numpy as np

from coding_vessels.anatomy import VIEWS
from coding_vessels.arteries import Population, draw_vessels
from coding_vessels.films import Scanner, aim, expose, finish, path_lengths, segments_of
from coding_vessels.phantom import PRESETS

CROP = 256


def contrast(frame):
    """Return how much darker each pixel is than its surroundings, as a share of them; black borders give 0."""
    black = cv2.copyMakeBorder((frame < 4).astype(np.uint8), 40, 40, 40, 40, cv2.BORDER_CONSTANT, value=1)
    border = cv2.morphologyEx(black, cv2.MORPH_OPEN, np.ones((41, 41), np.uint8))[40:-40, 40:-40]  # wider than any vessel
    small = cv2.resize(frame, None, fx=0.125, fy=0.125, interpolation=cv2.INTER_AREA)
    ground = cv2.resize(cv2.medianBlur(small, 21), frame.shape[::-1], interpolation=cv2.INTER_LINEAR).astype(np.float32)
    return np.where((ground > 20) & (border == 0), (ground - frame) / np.maximum(ground, 20), 0).astype(np.float32)


def core(path):
    """Return where a reader draws a vessel, (height, width): not its rim, which is paler than what is beside it."""
    return (path > 0.4) & (path > 0.4 * cv2.dilate(path, np.ones((3, 3))))


def sequence_minimum(seed):
    """Return the pixel-wise minimum of a few exposures of each view, as a sequence gives it, and the vessel masks.

    The head moves from exposure to exposure, so bright and dark ghosts of the bones become dark ones only.
    """
    rng = np.random.default_rng(seed)
    wide = dict(field_of_view=(170, 310), letters=0.5, shading=(4, 20), noise=(0.5, 3.0), attenuation=(0.08, 0.30), rounded=0.1,
                blur=(0.1, 0.4), gamma=(0.7, 1.5), finest=(-0.5, 0.5))
    scanner = replace(PRESETS['image-intensifier'][1] if rng.random() < 0.4 else Scanner(), **wide)
    population = replace(Population(), external=0.6, tortuous=0.4)
    scanner = replace(scanner, background=(rng.uniform(*scanner.background),) * 2, motion=(0.0, rng.choice([0.5, 1.5, 3.0, 4.5])))
    vessels, minima, masks = list(draw_vessels(rng, population).values()), [], []
    for view in VIEWS:
        camera, segments = aim(view, (800, 800), rng, scanner), segments_of(vessels, view[:2], rng, scanner)
        path, _ = path_lengths(camera, segments, [], view[:2])
        exposures = [expose(path * rng.uniform(0.6, 1), camera, rng, scanner) for _ in range(3)]
        frame, seen = finish(np.min(exposures, axis=0), view, False, rng, scanner)
        minima.append(frame)
        masks.append(core(path) * seen)
    return minima, masks


def crops_of(seed, number=3):
    """Return crops of contrast and mask from one simulated patient."""
    rng = np.random.default_rng([seed, 1])
    inputs, targets = [], []
    for frame, mask in zip(*sequence_minimum(seed)):
        x = contrast(frame)
        for _ in range(number):
            top, left = rng.integers(0, 800 - CROP, 2)
            inputs.append(x[top : top + CROP, left : left + CROP])
            targets.append(mask[top : top + CROP, left : left + CROP])
    return np.array(inputs, np.float16), np.array(targets, np.uint8)


def network():
    """Return a U-Net of about 0.5 million weights: (height, width, 1) to (height, width, 1), multiples of 16."""
    import keras
    from keras import layers

    def block(x, filters):
        for _ in range(2):
            x = layers.ReLU()(layers.BatchNormalization()(layers.Conv2D(filters, 3, padding="same", use_bias=False)(x)))
        return x

    inputs = keras.Input((None, None, 1))
    x, skips = layers.Conv2D(16, 4, 2, padding="same")(inputs * 4.0), []  # half the resolution: a quarter of the work
    for filters in (16, 32, 64):
        x = block(x, filters)
        skips.append(x)
        x = layers.MaxPooling2D()(x)
    x = block(x, 96)
    for filters, skip in zip((64, 32, 16), skips[::-1]):
        x = block(layers.Concatenate()([layers.UpSampling2D(interpolation="bilinear")(x), skip]), filters)
    x = layers.Conv2DTranspose(8, 4, 2, padding="same", activation="relu")(x)
    return keras.Model(inputs, layers.Conv2D(1, 3, padding="same", activation="sigmoid", dtype="float32")(layers.Concatenate()([x, inputs])))


def loss(truth, p):
    """Cross-entropy plus one minus the soft Dice coefficient of the batch."""
    from keras import losses, ops

    dice = (2 * ops.sum(truth * p) + 1) / (ops.sum(truth) + ops.sum(p) + 1)
    return ops.mean(losses.binary_crossentropy(truth, p)) + 1 - dice


def sequences(folder):
    """Yield name, pixel-wise minimum and artery mask of each real sequence."""
    for label in sorted((folder / "labels").glob("*s*.png")):
        name = label.stem.split("_")[-1]
        paths = sorted((folder / "images").glob(f"image_{name}_i*.png")) or [folder / "minimum" / f"{name}.png"]
        frames = [cv2.imread(str(path), cv2.IMREAD_GRAYSCALE) for path in paths]
        yield name, np.min(frames, axis=0), cv2.imread(str(label), cv2.IMREAD_GRAYSCALE) > 0


def hanging_together(found, fewest=0.005):
    """Return the parts of a mask that cover some share of the frame: arteries are one tree, letters and teeth are crumbs."""
    _, parts, measures, _ = cv2.connectedComponentsWithStats(np.uint8(found))
    large = measures[:, cv2.CC_STAT_AREA] >= fewest * found.size
    large[0] = False
    return large[parts]


def score(model, folder):
    """Return the Dice coefficients of every real sequence at a threshold of 0.5: all that is found, and what hangs together."""
    scores = {}
    for name, minimum, truth in sequences(folder):
        found = np.asarray(model(contrast(minimum)[None, ..., None]))[0, ..., 0] > 0.5
        scores[name] = [float(2 * (one & truth).sum() / (one.sum() + truth.sum())) for one in (found, hanging_together(found))]
    return scores


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--real", type=Path, required=True, nargs="+")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--studies", type=int, default=200)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    args.out.mkdir(parents=True)
    parts = joblib.Parallel(n_jobs=-1)(joblib.delayed(crops_of)(args.seed * 100_000 + i) for i in range(args.studies))
    inputs, masks = (np.concatenate(part)[..., None] for part in zip(*parts))
    print(f"{len(inputs)} crops from {args.studies} simulated patients, {masks.mean():.1%} vessel", flush=True)

    import keras

    keras.utils.set_random_seed(args.seed)
    model, steps = network(), len(inputs) // 16 * args.epochs
    model.compile(keras.optimizers.AdamW(keras.optimizers.schedules.CosineDecay(2e-3, steps)), loss)
    model.fit(inputs, masks.astype(np.float32), batch_size=16, epochs=args.epochs, verbose=2)
    model.save(args.out / "segmentation.keras")
    result = {"studies": args.studies, "epochs": args.epochs, "seed": args.seed, "folders": []}
    for folder in args.real:
        scores = score(model, folder)
        means = dict(zip(("all that is found", "what hangs together"), np.mean(list(scores.values()), axis=0).tolist()))
        result["folders"].append({"sequences": len(scores), "means": means, "scores": scores})
        print(folder.name, len(scores), {name: round(mean, 3) for name, mean in means.items()}, flush=True)
    (args.out / "scores.json").write_text(json.dumps(result, indent=1))
