"""Teaches the network on a graphics card, with JAX.

    KERAS_BACKEND=jax python tests/teach_on_card.py RUN [--start MODEL] [--trial]

Wants a card with 40 GB of memory; on an H200 the three stages take three minutes, their compilation as long again. Processes draw
pairs of twins all the while; each pair is used some twelve times, changed anew on the card (`twins_on_device.py`). The closer look
learns alone first, from squares with an aneurysm and their twins', then the whole network. Squares, whole studies and studies with
hidden views differ in their means, and prediction has only one set of them: so the means of batch normalisation are then taken from
whole studies and kept, and the network learns on with them. It ends with the mean of the weights over the second half of this last
stage, in RUN/settled.keras, not calibrated yet (`coding_vessels.training.calibrate`). A stage that is done is not done again. `--start` takes a trained network of the same kind instead of the first two stages.

`--trial` takes two steps of one pair in each stage, to see that all of it runs; some ten minutes on two cores.
"""

import argparse
import json
import os
import threading
import time
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from itertools import islice
from multiprocessing import get_context
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import cv2
import keras
import numpy as np
from joblib import cpu_count
from make_weights import norms, positive_weights, same_call
from make_weights import optimizer as adamw

from coding_vessels.batches import draw_pair, in_order
from coding_vessels.files import whole
from coding_vessels.model import closer_look, load_model, readers_of, vessel_model
from coding_vessels.phantom import PRESETS
from coding_vessels.preprocessing import Preprocessing
from coding_vessels.training import PRECISIONS, find_device, label_loss, look_loss, map_loss, mask_loss, suspicion_loss

FRAMES = Preprocessing(512, field=0.75, contrast=0.8)
DRAWN = {"pairs": 8192, "seed": 1001, "a shard": 256}
# Steps; squares with an aneurysm a step, or pairs and such squares a step; steps of one call of the card
ALONE = {"steps": 2000, "squares": 256, "rate": 2e-3, "seed": 1, "each": 20}
WHOLE = {"steps": 9984, "pairs": 8, "squares": 64, "rate": 1.5e-3, "seed": 2, "each": 32}
SETTLED = {"steps": 4000, "pairs": 8, "squares": 64, "rate": 4e-4, "seed": 3, "each": 32}
MEANS = 16                                      # batches of eight pairs for the means of batch normalisation
MISSING = 0.25                                  # of the studies lack views
SQUARE = {"suspicion": 1.0, "mask": 2.0}        # shares of the losses
EVERY = {"scores": 1.0, "maps": 0.2, "looks": 2.0, "suspicion": 0.3, "mask": 0.5}


LOSSES = {"scores": label_loss(positive_weights(PRESETS["training"][0]), twins=True), "maps": map_loss, "looks": look_loss,
          "suspicion": suspicion_loss, "mask": mask_loss}


def begin():
    """Make a process that draws leave room for others."""
    cv2.setNumThreads(1)
    os.nice(10)


def draw_numbered(number):
    """Return the pair with a number."""
    return draw_pair([DRAWN["seed"], number], *PRESETS["training"], FRAMES)


class Pool:
    """The shards on the card. They are drawn in the background, in order; the one used least is given."""

    def __init__(self, shards, size):
        self.shards, self.wanted, self.size = [], shards, size
        self.uses, self.news, self.error = {}, threading.Condition(), None
        threading.Thread(target=self.fill, daemon=True).start()

    def fill(self):
        """Draw the shards."""
        from twins_on_device import shard_of
        try:
            pool = ProcessPoolExecutor(max(1, cpu_count() - 2), get_context("spawn"), begin)
            pairs = in_order(pool, draw_numbered, range(self.wanted * self.size), 4 * cpu_count())
            while held := list(islice(pairs, self.size)):
                shard = shard_of(held)
                with self.news:
                    self.shards.append(shard)
                    self.news.notify_all()
        except Exception as error:
            with self.news:
                self.error = error
                self.news.notify_all()

    def next(self, stage):
        """Return the shard that a stage has used least."""
        with self.news:
            self.news.wait_for(lambda: self.shards or self.error)
            if self.error:
                raise self.error
            uses = self.uses.setdefault(stage, {})
            number = min(range(len(self.shards)), key=lambda i: (uses.get(i, 0), i))
            uses[number] = uses.get(number, 0) + 1
            return self.shards[number]


def values(variables):
    """Return copies of what variables hold."""
    return [variable.value.copy() for variable in variables]


class Stage:
    """A model to train as a plan says, and its program, which is compiled in the background."""

    def __init__(self, name, model, plan, size, compiler):
        import jax
        from twins_on_device import draw_presences, shapes_of
        self.name, self.model, self.plan = name, model, plan
        self.optimizer = adamw(plan["rate"], plan["steps"])
        self.optimizer.build(model.trainable_variables)
        self.fresh, self.presences = values(self.optimizer.variables), draw_presences(MISSING)
        program = jax.jit(self.several, donate_argnums=0)
        lowered = program.lower(self.state(), shapes_of(size, FRAMES.size), jax.random.key(0))
        self.program = compiler.submit(lowered.compile)

    def state(self):
        """Return what the training begins with: weights, what is kept beside them, and moments."""
        variables = self.model.trainable_variables, self.model.non_trainable_variables
        return *map(values, variables), [value.copy() for value in self.fresh]

    def lesson(self, key, shard, chosen):
        """Return what to show and what to learn from it."""
        from jax import random
        from twins_on_device import squares, studies
        keys = random.split(key, 2)
        seen, truth = squares(keys[int("pairs" in self.plan)], shard, self.plan["squares"])
        if "pairs" not in self.plan:
            return seen, truth
        frames, labels, maps = studies(keys[0], shard, chosen, self.presences)
        return [frames, seen], truth | {"scores": labels, "maps": maps, "looks": maps}

    def loss(self, trained, kept, key, shard, chosen):
        """Return the loss of a step; what is kept beside the weights, and each part of the loss."""
        shares = EVERY if "pairs" in self.plan else SQUARE
        shown, truth = self.lesson(key, shard, chosen)
        answer, kept = self.model.stateless_call(trained, kept, shown, training=True)
        each = {name: LOSSES[name](truth[name], answer[name].astype("float32")).mean() for name in shares}
        return sum(share * each[name] for name, share in shares.items()), (kept, each)

    def several(self, state, shard, key):
        """Return the state after several steps on the card, and their losses."""
        import jax
        from jax import lax, random
        count, pairs = len(shard["labels"]), self.plan.get("pairs", 0)
        order = random.permutation(random.fold_in(key, 7), count)

        def step(state, number):
            trained, kept, moments = state
            chosen = lax.dynamic_slice(order, (number * pairs % count,), (pairs,))
            back = jax.value_and_grad(self.loss, has_aux=True)
            (_, (kept, each)), slopes = back(trained, kept, random.fold_in(key, number), shard, chosen)
            trained, moments = self.optimizer.stateless_apply(moments, slopes, trained)
            return (trained, kept, moments), each

        return lax.scan(step, state, np.arange(self.plan["each"]))

    def learn(self, pool, run, average=False):
        """Train; end with the last weights, or with their mean over the second half of the calls."""
        import jax
        program, state = self.program.result(), self.state()
        calls, began, key = self.plan["steps"] // self.plan["each"], time.monotonic(), jax.random.key(self.plan["seed"])
        total, losses = None, []
        for call in range(calls):
            state, each = program(state, pool.next(self.name), jax.random.fold_in(key, call))
            losses.append(each)
            if average and call >= calls // 2:
                total = [value.copy() for value in state[0]] if total is None else [a + b for a, b in zip(total, state[0])]
            if call % 8 == 7 or call == calls - 1:
                means = {part: round(float(np.mean([own[part] for own in losses])), 4) for part in losses[0]}
                row = {"stage": self.name, "steps": (call + 1) * self.plan["each"],
                       "seconds": round(time.monotonic() - began), **means}
                print(row, flush=True)
                with open(run / "history.jsonl", "a") as lines:
                    lines.write(json.dumps(row) + "\n")
                losses = []
        if average:
            state = [value / (calls - calls // 2) for value in total], *state[1:]
        for variables, held in zip((self.model.trainable_variables, self.model.non_trainable_variables), state):
            for variable, value in zip(variables, held):
                variable.assign(value)


def settling(learner, size, compiler):
    """Return a function that gives the batch normalisations the means and variances of a shard's whole studies."""
    import jax
    from jax import lax, random
    from twins_on_device import draw_presences, shapes_of, studies
    own, kept = norms(learner), learner.non_trainable_variables
    places = [next(i for i, variable in enumerate(kept) if variable is mine)
              for norm in own for mine in (norm.moving_mean, norm.moving_variance)]
    momentum = [norm.momentum for norm in own]
    for norm in own:
        norm.momentum = 0.0                     # what a batch has, not what those before it had
    presences, key = draw_presences(0.0), random.key(3)

    def total(trained, kept, shard):
        def add(sums, number):
            chosen = (number * 8 + np.arange(8)) % size
            frames, *_ = studies(random.fold_in(key, number), shard, chosen, presences)
            _, new = learner.stateless_call(trained, kept, frames, training=True)
            return [one + new[i] for one, i in zip(sums, places)], None
        return lax.scan(add, [0 * kept[i] for i in places], np.arange(MEANS))[0]

    lowered = jax.jit(total).lower(values(learner.trainable_variables), values(kept), shapes_of(size, FRAMES.size))
    for norm, before in zip(own, momentum):
        norm.momentum = before
    program = compiler.submit(lowered.compile)

    def settle(shard):
        sums = program.result()(values(learner.trainable_variables), values(kept), shard)
        for i, value in zip(places, sums):
            kept[i].assign(value / MEANS)

    return settle


def learner_of(precision):
    """Return the network, untrained, made to compute in a precision; what its stages train: squares, or studies and squares."""
    keras.config.set_dtype_policy(PRECISIONS[precision])
    learner = vessel_model(FRAMES, masks=True)
    keras.config.set_dtype_policy("float32")
    look, parts = closer_look(learner), learner.output
    outputs = {"scores": learner.get_layer("scores").output, "maps": parts["maps"], "looks": parts["looks"]}
    return learner, look, keras.Model([learner.input, look.input], outputs | look(look.input))


def plans_of(trial):
    """Return the plans of the three stages, and the pairs a shard."""
    if not trial:
        return [ALONE, WHOLE, SETTLED], DRAWN["a shard"]
    small = {"steps": 2, "each": 1, "squares": 4}
    return [plan | small | ({"pairs": 1} if "pairs" in plan else {}) for plan in (ALONE, WHOLE, SETTLED)], 8


def teach(run, start=None, trial=False):
    """Train the network from nothing, from the last stage that is done, or, in the last stage alone, from a trained one."""
    plans, size = plans_of(trial)
    pool = Pool(1 if trial else DRAWN["pairs"] // size, size)
    network = vessel_model(FRAMES, masks=True)
    (learner, look, trainer), (steady, _, steadied) = (learner_of(find_device()[1]) for _ in range(2))
    for norm in norms(steady):
        norm.trainable = False
    learner.set_weights((readers_of(load_model(start))[0] if start else network).get_weights())
    compiler = ThreadPoolExecutor()
    models = {"alone": look, "whole": trainer, "settled": steadied}
    stages = {name: Stage(name, model, plan, size, compiler) for (name, model), plan in zip(models.items(), plans)
              if name == "settled" or not start}

    settle = None if start else settling(learner, size, compiler)

    def take(name, learner, **options):
        file = run / f"{name}.keras"
        if file.exists():
            return learner.set_weights(load_model(file).get_weights())
        stages[name].learn(pool, run, **options)
        network.set_weights(learner.get_weights())
        with whole(file) as beside:
            network.save(beside())

    if not start:
        take("alone", learner)
        take("whole", learner)
        settle(pool.next("settle"))
    steady.set_weights(learner.get_weights())
    take("settled", steady, average=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--start", type=Path)
    parser.add_argument("--trial", action="store_true")
    args = parser.parse_args()
    if keras.backend.backend() != "jax":
        parser.error("this wants JAX: set KERAS_BACKEND=jax")
    args.run.mkdir(parents=True, exist_ok=True)
    same_call(args.run, trial=args.trial, start=args.start and str(args.start.resolve()))
    keras.utils.set_random_seed(101)
    teach(args.run, args.start, args.trial)
