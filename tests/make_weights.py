"""Makes the weights that ship with the package.

    python tests/make_weights.py RUN [--start MODEL] [--epochs 9] [--share 1.0]

Draws patients as they are needed and trains on them, calibrates on others with natural frequencies, and writes the
shipped files. RUN keeps what is done; an interrupted call goes on. `--start` begins with a trained model instead of
nothing; the present weights began with those of commit c8c47b1 (`git show c8c47b1:coding_vessels/assets/vessel.keras`).
An epoch is 501 steps, about six minutes on two cores. `--share 0.01` is a trial with a hundredth of the steps and the patients.
"""

import argparse
import json
import os
import zipfile
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np

from coding_vessels.batches import Augmentation, phantom_batches
from coding_vessels.phantom import PRESETS, write_cohort
from coding_vessels.preprocessing import Preprocessing

PAIRS, USES = 167, 3  # of an epoch: pairs of twins, and how often each is used
RATE = 1e-3
CALIBRATION = "varied", 1200, 801  # preset, patients, seed


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


def patients(first, epochs, pairs):
    """Yield the batches of all epochs from the `first` on; each pair follows from its number."""
    frames = Preprocessing(512, field=0.75, contrast=0.8)
    return phantom_batches(*PRESETS["training"], frames, range(first * pairs, epochs * pairs), 1000, Augmentation(), uses=USES)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--start", type=Path)
    parser.add_argument("--epochs", type=int, default=9)
    parser.add_argument("--share", type=float, default=1.0)
    args = parser.parse_args()
    args.run.mkdir(parents=True, exist_ok=True)

    import keras
    import tensorflow as tf

    from coding_vessels import __version__
    from coding_vessels.engines import SHIPPED, export_model
    from coding_vessels.model import load_model, vessel_model
    from coding_vessels.studies import read_cohort
    from coding_vessels.training import calibrate, label_loss, look_loss, map_loss

    keras.utils.set_random_seed(101)
    model = load_model(args.start) if args.start else vessel_model()
    outputs = {"scores": model.get_layer("scores").output, "maps": model.output["maps"], "looks": model.output["looks"]}
    trainer = keras.Model(model.input, outputs)
    pairs = max(2, round(PAIRS * args.share))
    steps = USES * pairs
    total = steps * args.epochs
    warm = total // 25
    pace = keras.optimizers.schedules.CosineDecay(RATE / 20, total - warm, warmup_target=RATE, warmup_steps=warm)
    losses = {"scores": label_loss(positive_weights(PRESETS["training"][0]), twins=True), "maps": map_loss, "looks": look_loss}
    trainer.compile(keras.optimizers.AdamW(pace, clipnorm=1.0), losses, {"scores": 1.0, "maps": 0.2, "looks": 2.0})

    done = args.run / "done.json"
    first = json.loads(done.read_text()) if done.exists() else 0
    cells = model.output["maps"].shape[1:]
    shapes = tf.TensorSpec((2, *model.input.shape[1:]), tf.uint8), {
        "scores": tf.TensorSpec((2, 22), tf.float32),
        "maps": tf.TensorSpec((2, *cells), tf.float32),
        "looks": tf.TensorSpec((2, *cells), tf.float32),
    }

    def batches():
        for frames, targets in patients(first, args.epochs, pairs):
            yield frames, {"scores": targets["labels"], "maps": targets["maps"], "looks": targets["maps"]}

    class Keep(keras.callbacks.Callback):
        """Writes the model and the number of finished epochs."""

        def on_epoch_end(self, epoch, logs=None):
            model.save(args.run / "last.keras")
            with open(args.run / "history.jsonl", "a") as lines:
                lines.write(json.dumps({"epoch": epoch, **{k: round(float(v), 4) for k, v in logs.items()}}) + "\n")
            done.write_text(str(epoch + 1))

    if first < args.epochs:
        stream = tf.data.Dataset.from_generator(batches, output_signature=shapes).prefetch(2)
        backup = keras.callbacks.BackupAndRestore(str(args.run / "checkpoint"), delete_checkpoint=False)
        trainer.fit(stream, steps_per_epoch=steps, epochs=args.epochs, callbacks=[Keep(), backup], verbose=2)
    model = load_model(args.run / "last.keras")
    # Kernels in half precision: the file is half the size.
    model.set_weights([w.astype(np.float16).astype(w.dtype) if w.ndim > 1 else w for w in model.get_weights()])
    preset, count, seed = CALIBRATION
    folder = args.run / "calibration"
    if not folder.exists():
        write_cohort(folder, max(20, round(count * args.share)), seed, 720, *PRESETS[preset])
    studies, problems = read_cohort(folder / "groundtruth.csv", folder)
    assert not len(problems), problems
    calibrate(model, studies, cache=args.run / "cache")
    save_small(model, SHIPPED)
    export_model(SHIPPED)
    lines = [json.loads(line) for line in (args.run / "history.jsonl").read_text().splitlines()]
    record = {
        "settings": {"start": args.start and args.start.name, "epochs": args.epochs, "pairs": PAIRS, "uses": USES, "learning rate": RATE},
        "cohorts": {"training": {"preset": "training", "seed": 1000, "patients": 2 * PAIRS * args.epochs},
                    "valid": {"preset": preset, "patients": count, "seed": seed, "pixels": 720}},
        "versions": {"coding_vessels": __version__, "keras": keras.__version__, "numpy": np.__version__},
        "history": {name: [line[name] for line in lines] for name in lines[0]},
    }
    SHIPPED.with_suffix(".json").write_text(json.dumps(record, indent=1), encoding="utf-8")
    print(f"{SHIPPED}: now run nbs/12_weights.ipynb, which measures it and writes the model card")
