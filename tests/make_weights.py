"""Makes the weights that ship with the package.

    python tests/make_weights.py RUN [--start MODEL] [--share 1.0]

Draws patients as they are needed. From nothing, the closer look learns alone first, from squares with an aneurysm and without it,
then the whole network; `--start` takes a trained model, with or without masks, instead of these two stages. Squares, whole
studies and studies with hidden views differ in their means, and prediction has only one set of them: so the means of batch
normalisation are then taken from whole studies and kept, and the network learns on with them. One epoch's weights differ from the
next one's; the mean of two is steadier, and ships. Calibrates on others with natural frequencies, and writes the shipped files.
RUN keeps what is done; an interrupted call goes on. `--share 0.01` is a trial with a hundredth of the steps and the patients.
Convolutions are computed in bfloat16 where the processor can.
"""

import argparse
import itertools
import json
import os
import zipfile
from functools import partial
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import tensorflow as tf

from coding_vessels import __version__
from coding_vessels.batches import Augmentation, draw_pairs, phantom_batches, square_batches
from coding_vessels.engines import SHIPPED, export_model
from coding_vessels.model import closer_look, load_model, vessel_model
from coding_vessels.phantom import PRESETS, write_cohort
from coding_vessels.preprocessing import Preprocessing
from coding_vessels.studies import read_cohort
from coding_vessels.training import _norms as norms
from coding_vessels.training import calibrate, label_loss, look_loss, map_loss, mask_loss, suspicion_loss

ALONE = {"pairs": 2400, "uses": 3, "rate": 2e-3, "epochs": 8}      # for the closer look; `uses` is batches a pair
WHOLE = {"pairs": 2400, "uses": 2, "rate": 8e-4, "epochs": 12}     # for the network
SETTLED = {"pairs": 1000, "uses": 2, "rate": 3e-4, "epochs": 5}   # for the network with the means that prediction has
MEANS = 60                                                         # pairs for these means
AVERAGED = 1, 4                                                    # epochs of the last stage whose weights' mean ships
CALIBRATION = "varied", 1200, 801                                  # preset, patients, seed
SQUARE = {"suspicion": suspicion_loss, "mask": mask_loss}


def save_small(model, path):
    """Save a model as a `.keras` file whose parts are compressed."""
    model.save(path)
    with zipfile.ZipFile(path) as parts:
        contents = [(info, parts.read(info)) for info in parts.infolist()]
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as parts:
        for info, content in contents:
            parts.writestr(info.filename, content)


def positive_weights(population):
    """Return the weights of `label_loss` for twins of a population: the root of the negatives per positive, 1 to 10."""
    located = np.dot(population.flags, np.arange(len(population.flags))) * np.array(population.locations) / 2
    frequency = np.clip(np.concatenate([[0.9], located]), 1e-3, 0.999)
    return np.clip(np.sqrt((1 - frequency) / frequency), 1, 10).astype(np.float32)


def patients(seed, first, last):
    """Yield the pairs of twins with the numbers from `first` to `last`; each follows from its number and the seed."""
    frames = Preprocessing(512, field=0.75, contrast=0.8)
    return draw_pairs(*PRESETS["training"], frames, range(first, last), seed)


def optimizer(rate, steps):
    """Return AdamW with a rate that rises over a twenty-fifth of the steps and falls to zero along a cosine."""
    warm = steps // 25
    pace = keras.optimizers.schedules.CosineDecay(rate / 20, steps - warm, warmup_target=rate, warmup_steps=warm)
    return keras.optimizers.AdamW(pace, clipnorm=1.0)


def take(start, model):
    """Give a network with masks the weights of one with or without them. Masks do not count before they are learned."""
    for old, new in zip(*([layer for layer in one.layers if layer.weights] for one in (start, model)), strict=True):
        weights, known = new.get_weights(), old.get_weights()
        if len(weights) > len(known):                  # the closer look, whose last layer reads masks as well
            *first, kernel, bias = known
            wider = np.zeros_like(weights[-2])
            wider[: len(kernel)] = kernel
            known = [*first, *weights[len(first) : -2], wider, bias]
        new.set_weights(known)


def squares(first, last):
    """Yield what the closer look learns from."""
    return square_batches(patients(1001, first, last), 1001, ALONE["uses"])


def studies(seed, uses, first, last):
    """Yield what the network learns from: patients, and beside them squares of the same patients."""
    pairs, again = itertools.tee(patients(seed, first, last))
    beside = square_batches(again, seed + first, uses, size=8)
    for (frames, targets), (square, shown) in zip(phantom_batches(pairs, seed + first, Augmentation(), uses=uses), beside):
        answers = {"scores": targets["labels"], "maps": targets["maps"], "looks": targets["maps"]}
        yield {"frames": frames, "square": square}, answers | shown


def stream(batches, model, first, last):
    """Return batches as a model takes them; a few more than it needs, for pairs without an aneurysm yield no squares."""
    answers = {name: (None, *output.shape[1:]) for name, output in model.output.items()}
    if "maps" in answers:
        answers |= {"scores": (None, 22), "looks": answers["maps"]}
    inputs = {one.name: tf.TensorSpec((None, *one.shape[1:]), one.dtype) for one in model.inputs}
    signature = inputs if len(inputs) > 1 else inputs["square"], {name: tf.TensorSpec(shape) for name, shape in answers.items()}
    return tf.data.Dataset.from_generator(lambda: batches(first, last + 9), output_signature=signature).prefetch(2)


def settle(network, pairs):
    """Give the batch normalisations the means and variances of whole studies."""
    momentum = {norm: norm.momentum for norm in norms(network)}
    for number, (frames, _) in enumerate(phantom_batches(patients(1002, 0, pairs), 1002, Augmentation(), missing=0, uses=1)):
        for norm in momentum:
            norm.momentum = number / (number + 1)
        network(frames, training=True)
    for norm, value in momentum.items():
        norm.momentum = value


class Keep(keras.callbacks.Callback):
    """Writes the network and the number of finished epochs of a stage."""

    def __init__(self, network, run, stage):
        super().__init__()
        self.network, self.run, self.stage = network, run, stage

    def on_epoch_end(self, epoch, logs=None):
        self.network.save(self.run / "last.keras")
        self.network.save(self.run / f"{self.stage}-{epoch}.keras")
        with open(self.run / "history.jsonl", "a") as lines:
            figures = {name: round(float(value), 4) for name, value in logs.items()}
            lines.write(json.dumps({"stage": self.stage, "epoch": epoch, **figures}) + "\n")
        (self.run / f"{self.stage}.json").write_text(str(epoch + 1))


def learn(network, trainer, losses, shares, batches, plan, run, stage, share):
    """Train one stage, or what is left of it."""
    done = run / f"{stage}.json"
    first = json.loads(done.read_text()) if done.exists() else 0
    if first == plan["epochs"]:
        return
    each = max(2, round(plan["pairs"] * share / plan["epochs"]))
    steps = each * plan["uses"]
    trainer.compile(optimizer(plan["rate"], steps * plan["epochs"]), losses, shares)
    data = stream(batches, trainer, first * each, plan["epochs"] * each)
    backup = keras.callbacks.BackupAndRestore(str(run / stage), delete_checkpoint=False)
    callbacks = [Keep(network, run, stage), backup]
    trainer.fit(data, steps_per_epoch=steps, epochs=plan["epochs"], callbacks=callbacks, verbose=2)


def half_the_bits(on):
    """Compute convolutions in bfloat16, or no longer."""
    tf.config.optimizer.set_experimental_options({"auto_mixed_precision_onednn_bfloat16": on})


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--start", type=Path)
    parser.add_argument("--share", type=float, default=1.0)
    args = parser.parse_args()
    args.run.mkdir(parents=True, exist_ok=True)

    keras.utils.set_random_seed(101)
    half_the_bits(True)
    model = load_model(args.run / "last.keras") if (args.run / "last.keras").exists() else vessel_model(masks=True)
    if args.start and not (args.run / "last.keras").exists():
        take(load_model(args.start), model)
    look = closer_look(model)
    if not args.start:
        learn(model, look, SQUARE, {"suspicion": 1.0, "mask": 2.0}, squares, ALONE, args.run, "alone", args.share)
    outputs = {"scores": model.get_layer("scores").output, "maps": model.output["maps"], "looks": model.output["looks"]}
    trainer = keras.Model([model.input, look.input], outputs | look(look.input))
    labels = label_loss(positive_weights(PRESETS["training"][0]), twins=True)
    losses = {"scores": labels, "maps": map_loss, "looks": look_loss, **SQUARE}
    shares = {"scores": 1.0, "maps": 0.2, "looks": 2.0, "suspicion": 0.3, "mask": 0.5}
    if not args.start:
        learn(model, trainer, losses, shares, partial(studies, 1000, WHOLE["uses"]), WHOLE, args.run, "whole", args.share)
    if not (args.run / "settled.json").exists():
        settle(model, max(2, round(MEANS * args.share)))
    for norm in norms(model):
        norm.trainable = False
    learn(model, trainer, losses, shares, partial(studies, 1003, SETTLED["uses"]), SETTLED, args.run, "settled", args.share)

    half_the_bits(False)
    kept = [load_model(args.run / f"settled-{epoch}.keras").get_weights() for epoch in AVERAGED]
    model.set_weights([np.mean(weights, axis=0) for weights in zip(*kept)])
    # Kernels in half precision: the file is half the size.
    model.set_weights([w.astype(np.float16).astype(w.dtype) if w.ndim > 1 else w for w in model.get_weights()])
    preset, count, seed = CALIBRATION
    folder = args.run / "calibration"
    if not folder.exists():
        write_cohort(folder, max(20, round(count * args.share)), seed, 720, *PRESETS[preset])
    cohort, problems = read_cohort(folder / "groundtruth.csv", folder)
    assert not len(problems), problems
    calibrate(model, cohort, cache=args.run / "cache")
    save_small(model, SHIPPED)
    export_model(SHIPPED)
    stages = {"settled": SETTLED} if args.start else {"alone": ALONE, "whole": WHOLE, "settled": SETTLED}
    record = {
        "settings": {"start": args.start and args.start.name, **stages},
        "cohorts": {
            "training": {"preset": "training", "patients": 2 * sum(plan["pairs"] for plan in stages.values())},
            "valid": {"preset": preset, "patients": count, "seed": seed, "pixels": 720},
        },
        "versions": {"coding_vessels": __version__, "keras": keras.__version__, "numpy": np.__version__},
        "history": [json.loads(line) for line in (args.run / "history.jsonl").read_text().splitlines()],
    }
    SHIPPED.with_suffix(".json").write_text(json.dumps(record, indent=1), encoding="utf-8")
    print(f"{SHIPPED}: now run nbs/12_weights.ipynb, which measures it and writes the model card")
