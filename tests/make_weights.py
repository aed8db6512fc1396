"""Makes the weights that ship with the package.

    python tests/make_weights.py RUN [--start MODEL [--look]] [--second MODEL] [--share 1.0]

Draws patients as they are needed. From nothing, the closer look learns alone first, from squares with an aneurysm and without it,
then the whole network. Squares, whole studies and studies with hidden views differ in their means, and prediction has only one
set of them: so the means of batch normalisation are then taken from whole studies and kept, and the network learns on with them.
One epoch's weights differ from the next one's; the mean of two is steadier. Then all but the last layers stand still, and these
learn anew what to make of the readings of each location.
`--start` takes a trained model, which learns on with its means, no more; with `--look` its closer look learns from nothing, alone
and longer, then the last layers, and the rest stays as it is.
`--second` takes another trained one, and what ships is the mean of the two, calibrated together.
Calibrates on other
patients with natural frequencies, so that one in twenty without an aneurysm is flagged, and writes the shipped files. `--calibrate`
does only that, with the weights that ship now. RUN keeps what is done; an interrupted call goes on.
`--share 0.01` is a trial with a hundredth of the steps and the patients.

Keras computes with TensorFlow, or with JAX if the environment says KERAS_BACKEND=jax; on a graphics card in bfloat16, on a
processor with TensorFlow its convolutions are, where it can. As many processes draw patients as there are cores.
"""

import argparse
import hashlib
import itertools
import json
import os
import sys
import zipfile
from functools import partial
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
from joblib import cpu_count

from coding_vessels import __version__
from coding_vessels.anatomy import LOCATIONS
from coding_vessels.batches import Augmentation, draw_lessons, phantom_batches, square_batches
from coding_vessels.engines import SHIPPED, export_model
from coding_vessels.files import whole
from coding_vessels.model import ViewEmbedding, closer_look, double_reading, load_model, readers_of, vessel_model
from coding_vessels.phantom import PRESETS, write_cohort
from coding_vessels.preprocessing import Preprocessing
from coding_vessels.studies import read_cohort
from coding_vessels.training import PRECISIONS, calibrate, find_device, label_loss, look_loss, map_loss, mask_loss, suspicion_loss
from coding_vessels.training import _norms as norms

# Pairs of twins in all, how often each is used, pairs a step (for the closer look: sixteen squares and their twins)
ALONE = {"pairs": 2400, "uses": 3, "size": 1, "rate": 2e-3, "epochs": 8}       # for the closer look
WHOLE = {"pairs": 2400, "uses": 2, "size": 1, "rate": 8e-4, "epochs": 12}      # for the network
SETTLED = {"pairs": 800, "uses": 2, "size": 1, "rate": 3e-4, "epochs": 4}      # for the network with the means of prediction
MEANS = 60                                                                     # pairs for these means
AVERAGED = 1, 3                                                                # epochs of this stage whose weights' mean is taken
LOOK = {"pairs": 3000, "uses": 5, "size": 1, "rate": 2e-3, "epochs": 15}       # for a closer look of a trained network
READ = {"pairs": 3000, "size": 2, "rate": 2e-3, "epochs": 8}                   # for the last layers
CALIBRATION = "varied", 1200, 801                                              # preset, patients, seed
SPECIFICITY = 0.95                                                             # of these, to which the thresholds keep
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


def lessons(seed, uses, first, last, missing=0.25):
    """Yield the lessons with the numbers from `first` to `last`; each follows from its number and the seed."""
    frames = Preprocessing(512, field=0.75, contrast=0.8)
    options = *PRESETS["training"], frames, Augmentation(), missing, uses
    return draw_lessons(range(first, last), seed, *options, workers=cpu_count())


def optimizer(rate, steps):
    """Return AdamW with a rate that rises over a twenty-fifth of the steps and falls to zero along a cosine."""
    warm = steps // 25
    pace = keras.optimizers.schedules.CosineDecay(rate / 20, steps - warm, warmup_target=rate, warmup_steps=warm)
    return keras.optimizers.AdamW(pace, clipnorm=1.0)


def weighted(model):
    """Return the layers with weights. Earlier networks told the closer look its view; that vector is left out."""
    layers = [layer for layer in model.layers if layer.weights]
    first = next(layer for layer in layers if isinstance(layer, ViewEmbedding))
    return [layer for layer in layers if layer is first or not isinstance(layer, ViewEmbedding)]


def take(start, model):
    """Give a network the weights of a trained one."""
    for old, new in zip(weighted(start), weighted(model), strict=True):
        new.set_weights(old.get_weights())


def squares(plan, first, last):
    """Yield what the closer look learns from."""
    return square_batches(lessons(1001, 0, first, last), 1001, plan["uses"])


def studies(seed, plan, first, last):
    """Yield what the network learns from: patients, and beside them squares of the same patients."""
    drawn, again = itertools.tee(lessons(seed, plan["uses"], first, last))
    beside = square_batches(again, seed + first, plan["uses"], size=8)
    for frames, targets in phantom_batches(drawn, seed + first, plan["size"]):
        several = list(itertools.islice(beside, plan["size"]))
        square = np.concatenate([one for one, _ in several])
        shown = {name: np.concatenate([answers[name] for _, answers in several]) for name in SQUARE}
        answers = {"scores": targets["labels"], "maps": targets["maps"], "looks": targets["maps"]}
        yield {"frames": frames, "square": square}, answers | shown


def settle(network, pairs):
    """Give the batch normalisations the means and variances of whole studies."""
    momentum = {norm: norm.momentum for norm in norms(network)}
    for number, (frames, _) in enumerate(phantom_batches(lessons(1002, 1, 0, pairs, missing=0), 1002)):
        for norm in momentum:
            norm.momentum = number / (number + 1)
        network(frames, training=True)
    for norm, value in momentum.items():
        norm.momentum = value


class Keep(keras.callbacks.Callback):
    """Writes the network and the number of finished epochs of a stage."""

    def __init__(self, network, learner, run, stage):
        super().__init__()
        self.network, self.learner, self.run, self.stage = network, learner, run, stage

    def on_epoch_end(self, epoch, logs=None):
        self.network.set_weights(self.learner.get_weights())
        self.network.save(self.run / "last.keras")
        self.network.save(self.run / f"{self.stage}-{epoch}.keras")
        with open(self.run / "history.jsonl", "a") as lines:
            figures = {name: round(float(value), 4) for name, value in logs.items()}
            lines.write(json.dumps({"stage": self.stage, "epoch": epoch, **figures}) + "\n")
        (self.run / f"{self.stage}.json").write_text(str(epoch + 1))


def learn(network, learner, trainer, losses, shares, batches, plan, run, stage, share):
    """Train one stage, or what is left of it; the learner is the network in the precision of the device."""
    done = run / f"{stage}.json"
    first = json.loads(done.read_text()) if done.exists() else 0
    if first == plan["epochs"]:
        return
    each = max(2 * plan["size"], round(plan["pairs"] * share / plan["epochs"]))
    steps = each * plan["uses"] // plan["size"]
    trainer.compile(optimizer(plan["rate"], steps * plan["epochs"]), losses, shares)
    data = batches(plan, first * each, plan["epochs"] * each + 20 + 10 * plan["size"])    # a few more than are needed
    backup = keras.callbacks.BackupAndRestore(str(run / stage), delete_checkpoint=False)
    callbacks = [Keep(network, learner, run, stage), backup]
    trainer.fit(data, steps_per_epoch=steps, epochs=plan["epochs"], callbacks=callbacks, verbose=2)


def half_the_bits(on):
    """Compute convolutions in bfloat16 on a processor with TensorFlow, or no longer."""
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        tf.config.optimizer.set_experimental_options({"auto_mixed_precision_onednn_bfloat16": on})


def learner_of(network, precision):
    """Return the same network, made to compute in a precision."""
    keras.config.set_dtype_policy(PRECISIONS[precision])
    learner = vessel_model(masks=True)
    keras.config.set_dtype_policy("float32")
    learner.set_weights(network.get_weights())
    return learner


def teach(network, run, share, trained):
    """Train the network, or what is left of it, the last stage alone if it is trained; end with the mean of two epochs' weights."""
    learner = learner_of(network, find_device()[1])
    look, parts = closer_look(learner), learner.output
    if not trained:
        learn(network, learner, look, SQUARE, {"suspicion": 1.0, "mask": 2.0}, squares, ALONE, run, "alone", share)
    outputs = {"scores": learner.get_layer("scores").output, "maps": parts["maps"], "looks": parts["looks"]}
    trainer = keras.Model([learner.input, look.input], outputs | look(look.input))
    labels = label_loss(positive_weights(PRESETS["training"][0]), twins=True)
    losses = {"scores": labels, "maps": map_loss, "looks": look_loss, **SQUARE}
    shares = {"scores": 1.0, "maps": 0.2, "looks": 2.0, "suspicion": 0.3, "mask": 0.5}
    if not trained:
        learn(network, learner, trainer, losses, shares, partial(studies, 1000), WHOLE, run, "whole", share)
    if not trained and not (run / "settled.json").exists():
        settle(learner, max(2, round(MEANS * share)))
    for norm in [*norms(learner), *norms(network)]:
        norm.trainable = False
    learn(network, learner, trainer, losses, shares, partial(studies, 1003), SETTLED, run, "settled", share)
    kept = [load_model(run / f"settled-{epoch}.keras").get_weights() for epoch in AVERAGED]
    network.set_weights([np.mean(weights, axis=0) for weights in zip(*kept)])


def look_anew(network, run, share):
    """Teach the closer look from nothing, alone; what else is in the network stays as it is."""
    fresh = load_model(run / "last.keras") if (run / "last.keras").exists() else vessel_model(masks=True)
    learner = learner_of(fresh, find_device()[1])
    learn(fresh, learner, closer_look(learner), SQUARE, {"suspicion": 1.0, "mask": 2.0}, squares, LOOK, run, "look", share)
    for name in ("near", "nearer", "suspicion"):
        network.get_layer(name).set_weights(fresh.get_layer(name).get_weights())


def same_call(run, **words):
    """Note in the folder what it was begun with; stop if that was something else, for its files are of that."""
    file = run / "call.json"
    kept = json.loads(file.read_text()) if file.exists() else words
    if any(kept.get(name, value) != value for name, value in words.items()):
        sys.exit(f"{run} was begun with {kept}, now it is {words}; choose another folder.")
    file.write_text(json.dumps(kept | words))


def readings(network, run, pairs, piece=250):
    """Return what the last layers read of pairs of twins, (pairs, 2, 21, 4, features), and the labels, (pairs, 2, 22)."""
    reader, parts = keras.Model(network.input, network.get_layer("readout").output), []
    for first in range(0, pairs, piece):
        last = min(first + piece, pairs)
        file = run / f"readings-{first}-{last}.npz"
        if not file.exists():
            made = [
                (np.float16(reader.predict_on_batch(frames)), targets["labels"])
                for frames, targets in phantom_batches(lessons(1006, 1, first, last), 1006)
            ]
            read, labels = map(np.stack, zip(*made))
            with whole(file) as beside:
                np.savez(beside(), R=read, L=labels)
        with np.load(file) as kept:
            parts.append((kept["R"], kept["L"]))
    return [np.concatenate(part) for part in zip(*parts)]


def read_anew(network, run, share):
    """Teach the last layers from nothing, on readings that the rest of the network has made."""
    read, labels = readings(network, run, max(8, round(READ["pairs"] * share)))
    fresh = vessel_model(masks=True).get_layer("sequence")
    frame = keras.Input(read.shape[2:])
    reader = keras.Model(frame, keras.layers.Reshape((len(LOCATIONS),))(fresh(frame)))
    size, rng = READ["size"], np.random.default_rng(1)
    steps = len(read) // size

    def batches():
        for _ in range(READ["epochs"]):
            for chosen in rng.permutation(len(read))[: steps * size].reshape(-1, size):
                yield np.float32(read[chosen]).reshape(-1, *read.shape[2:]), labels[chosen].reshape(-1, labels.shape[-1])

    pace = keras.optimizers.schedules.CosineDecay(READ["rate"], steps * READ["epochs"])
    loss = label_loss(positive_weights(PRESETS["training"][0]), twins=True)
    reader.compile(keras.optimizers.AdamW(pace, weight_decay=0.01, clipnorm=1.0), loss)
    done = reader.fit(batches(), steps_per_epoch=steps, epochs=READ["epochs"], verbose=2)
    network.get_layer("sequence").set_weights(fresh.get_weights())
    return [{"stage": "read", "epoch": epoch, "loss": round(loss, 4)} for epoch, loss in enumerate(done.history["loss"])]


def made(run, start, look, share):
    """Return a trained network and the record of its training."""
    half_the_bits(True)
    begun = (run / "last.keras").exists() and not look
    model = load_model(run / "last.keras") if begun else vessel_model(masks=True)
    if start and not begun:
        take(readers_of(load_model(start))[0], model)
    if look:
        look_anew(model, run, share)
    else:
        teach(model, run, share, bool(start))
    for norm in norms(model):
        norm.trainable = False
    read = [] if start and not look else read_anew(model, run, share)
    half_the_bits(False)
    # Kernels in half precision: the file is half the size.
    model.set_weights([w.astype(np.float16).astype(w.dtype) if w.ndim > 1 else w for w in model.get_weights()])
    stages = {"alone": ALONE, "whole": WHOLE, "settled": SETTLED, "read": READ}
    if start:
        stages = {"look": LOOK, "read": READ} if look else {"settled": SETTLED}
    history = run / "history.jsonl"
    before = [json.loads(line) for line in history.read_text().splitlines()] if history.exists() else []
    training = {"preset": "training", "patients": 2 * sum(plan["pairs"] for plan in stages.values())}
    return model, {
        "settings": {"start": start and start.name, **stages},
        "cohorts": {"training": training},
        "history": before + read,
    }


def doubled(model, record, second):
    """Return the model that reads as two networks do, and the record with that of the second."""
    beside = {"file": second.name, "SHA-256": hashlib.sha256(second.read_bytes()).hexdigest()}
    if second.with_suffix(".json").exists():
        beside |= json.loads(second.with_suffix(".json").read_text(encoding="utf-8"))
    return double_reading(readers_of(model)[0], readers_of(load_model(second))[0]), record | {"second": beside}


def others(run, share):
    """Return the patients to calibrate on; they are drawn if they are not there."""
    (preset, count, seed), folder = CALIBRATION, run / "calibration"
    if not folder.exists():
        write_cohort(folder, max(20, round(count * share)), seed, 720, *PRESETS[preset])
    cohort, problems = read_cohort(folder / "groundtruth.csv", folder)
    assert not len(problems), problems
    return cohort


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    either = parser.add_mutually_exclusive_group()
    either.add_argument("--start", type=Path)
    either.add_argument("--calibrate", action="store_true")
    parser.add_argument("--look", action="store_true")
    parser.add_argument("--second", type=Path)
    parser.add_argument("--share", type=float, default=1.0)
    args = parser.parse_args()
    if args.look and not args.start:
        parser.error("--look takes the rest of the network from --start")
    args.run.mkdir(parents=True, exist_ok=True)
    begun = {} if args.calibrate else {"start": args.start and hashlib.sha256(args.start.read_bytes()).hexdigest(), "look": args.look}
    same_call(args.run, share=args.share, **begun)

    keras.utils.set_random_seed(101)
    if args.calibrate:
        model, record = load_model(SHIPPED), json.loads(SHIPPED.with_suffix(".json").read_text(encoding="utf-8"))
    else:
        model, record = made(args.run, args.start, args.look, args.share)
    if args.second:
        model, record = doubled(model, record, args.second)
    calibrate(model, others(args.run, args.share), cache=args.run / "cache", specificity=SPECIFICITY)
    save_small(model, SHIPPED)
    export_model(SHIPPED)
    preset, count, seed = CALIBRATION
    record["cohorts"]["valid"] = {"preset": preset, "patients": count, "seed": seed, "pixels": 720, "specificity": SPECIFICITY}
    record["versions"] = {"coding_vessels": __version__, "keras": keras.__version__, "numpy": np.__version__}
    SHIPPED.with_suffix(".json").write_text(json.dumps(record, indent=1), encoding="utf-8")
    print(f"{SHIPPED}: now run nbs/12_weights.ipynb, which measures it and writes the model card")
