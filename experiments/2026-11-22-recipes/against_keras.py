"""Compares the two Keras recipes with Keras 3: same text, same initial weights, same order of batches, no dropout.

    PYTHON experiments/2026-11-22-recipes/against_keras.py TEXT CSV

PYTHON is the interpreter of an environment with Keras, JAX, h5py and charlm. TEXT is Alice in Wonderland. CSV is the test file
of AG News. The sonnets' recipe, four LSTM layers of 256 on windows of 100, is compared over 50 steps. The AG News recipe is
compared over one epoch of the titles. The exit status is 1 if the losses differ by more than the bounds below.
"""

import os
import sys
import tempfile

os.environ["KERAS_BACKEND"] = "jax"

import jax
import keras
import numpy as np
from jax.sharding import Mesh

from charlm.config import load as config
from charlm.data import batches, corpora
from charlm.data.framing import Framing
from charlm.data.ids import encode
from charlm.data.vocab import PAD, Vocab, symbols_of
from charlm.exchange import keras as keras_weights
from charlm.exchange import weights
from charlm.models import stack
from charlm.training import optim
from charlm.training import step as step_module

STEP_BOUND = 1e-4  # sonnets: largest difference of a step's loss, nats
MEAN_BOUND = 1e-3  # AG News: largest relative difference of the mean loss over the epoch


def main(text_file: str, csv_file: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        sonnets(text_file, folder)
        ag_news(csv_file, folder)


def sonnets(text_file: str, folder: str) -> None:
    """Compares the sonnets' recipe on the first 20,000 characters of Alice, normalised as in the recipe `alice_axon`."""
    text, _ = corpora.read(text_file, corpora.Normalisation.of(config.load("configs/alice_axon.py")))
    overrides = {"model.dropout": 0.0, "model.dtype": "float32", "corpus.path": text_file}
    recipe = config.load("configs/sonnets_keras.py:original", overrides)
    vocab = Vocab.of(symbols_of(text[:20_000]), unknown=False)
    training = batches.training_batches(Framing.of(recipe), encode(vocab, text[:20_000], text_file), recipe.seed)
    keras.utils.set_random_seed(0)
    layers = [keras.layers.LSTM(256, return_sequences=index < 3) for index in range(4)]
    network = keras.Sequential([keras.Input((100, 1)), *layers, keras.layers.Dense(len(vocab), activation="softmax")])
    network.compile(loss="categorical_crossentropy", optimizer="adam")
    params = weights_of(network, folder, recipe)

    def scaled(batch):
        return batch.inputs_BT[..., None] / np.float32(len(vocab)), np.eye(len(vocab), dtype=np.float32)[batch.targets_BS[:, 0]]

    steps = [training.batch_at(step) for step in range(50)]
    theirs = [float(network.train_on_batch(*scaled(batch))) for batch in per_step(network, steps)]
    mine = [metrics.loss_nats / metrics.loss_weight for metrics in our_steps(recipe, vocab, params, steps)]
    apart = np.abs(np.array(mine) - theirs)
    print(f"windows, 4 x LSTM 256, 50 steps: loss {mine[0]:.6f} to {mine[-1]:.6f}, Keras {theirs[0]:.6f} to {theirs[-1]:.6f}")
    print(f"  largest difference {apart.max():.2e} nats, at step {apart.argmax() + 1}")
    if apart.max() > STEP_BOUND:
        sys.exit(f"the losses differ by more than {STEP_BOUND:g} nats")


def ag_news(csv_file: str, folder: str) -> None:
    """Compares the AG News recipe over one epoch, with the lesson's padding and in the order of the file."""
    overrides = {"corpus.split": (1.0,), "batch.padding": "counted", "batch.bucket": 1, "batch.shuffle": False}
    recipe = config.load(f"configs/ag_news_keras.py:{csv_file}", overrides | {"train.best": "train"})
    documents = corpora.load(recipe).splits["train"]
    vocab = Vocab.of(symbols_of(corpora.joined(documents)), unknown=False, documents=True)
    training = batches.training_batches(Framing.of(recipe), encode(vocab, documents, csv_file), recipe.seed)
    keras.utils.set_random_seed(0)
    hidden = keras.layers.LSTM(128, return_sequences=True)
    network = keras.Sequential([keras.Input((None, len(vocab))), hidden, keras.layers.Dense(len(vocab), activation="softmax")])
    network.compile(loss="categorical_crossentropy", optimizer="rmsprop")
    params = weights_of(network, folder, recipe)
    hot = np.eye(len(vocab), dtype=np.float32)
    steps = list(batches.once_through(training))
    theirs = [float(network.train_on_batch(hot[batch.inputs_BT], hot[batch.targets_BS])) for batch in per_step(network, steps)]
    metrics = our_steps(recipe, vocab, params, steps)
    mine = [each.loss_nats / each.loss_weight for each in metrics]
    masked = sum(each.nats for each in metrics) / sum(each.chars for each in metrics)
    print(f"documents, LSTM 128, one epoch over {len(documents):,} titles: {len(steps)} steps")
    share = np.mean(mine) / np.mean(theirs) - 1
    print(f"  padded mean {np.mean(mine):.6f}, Keras {np.mean(theirs):.6f}, ratio - 1 = {share:.1e}")
    apart = np.abs(np.subtract(mine, theirs)).max()
    print(f"  mean over the characters alone {masked:.6f}; largest difference of a step {apart:.1e}")
    if abs(share) > MEAN_BOUND:
        sys.exit(f"the relative difference of the means is more than {MEAN_BOUND:g}")


def per_step(network, steps):
    """Yields the batches. Resets Keras's running mean before each batch, so `train_on_batch` returns the loss of one batch."""
    for batch in steps:
        network.reset_metrics()
        yield batch


def weights_of(network, folder: str, recipe):
    file = f"{folder}/{network.name}.weights.h5"
    network.save_weights(file)
    return weights.params_of(keras_weights.read(file), recipe)


def our_steps(recipe, vocab: Vocab, params, steps) -> list[step_module.StepMetrics]:
    """Returns the metrics of charlm's training steps, which start from the given weights."""
    functions, optimizer = stack.functions(recipe, len(vocab)), optim.optimizer(recipe, 1)
    mesh = Mesh(np.array(jax.devices()[:1]), ("rows",))
    params = jax.tree.map(jax.numpy.asarray, params)
    rows = len(steps[0].reset_B)
    state = step_module.TrainState(jax.numpy.zeros((), "int32"), params, optimizer.init(params), functions.zero_carry(rows))
    step = jax.jit(step_module.make_train_step(functions, optimizer, mesh, vocab.id_of(PAD)))
    rates, metrics = optim.rates(optim.schedule(recipe, len(steps), len(steps)))(0, len(steps)), []
    for batch, rate in zip(steps, rates, strict=True):
        state, of_step = step(state, batch, rate, 0)
        metrics.append(step_module.StepMetrics(*(float(value) for value in of_step if value is not None)))
    return metrics


if __name__ == "__main__":
    main(*sys.argv[1:])
