"""Computes the validation loss of an Anna run as Udacity's notebook does, and without the notebook's mistake.

    .venv/bin/python experiments/2026-11-22-recipes/anna_as_published.py WORKDIR [best|latest|STEP]

The notebook reads the validation text in 128 lanes, 100 characters at a time. Each lane starts at the zero state. The last
6,523 of the 198,523 characters do not fill a batch and are left out. They are all Project Gutenberg's licence. The last target
of each lane is wrong: it is the first character of the lane. The notebook prints the mean over batches. All batches have the
same size, so this is also the mean over characters.

The script prints three lines: the loss as published, the loss with the true last targets, and the loss of the whole split. The
third loss reads 128 lanes from the zero state. The run `anna_weight_decay` logged this loss during training.
"""

import json
import sys

import jax
import numpy as np

from charlm import measures
from charlm.data import batches
from charlm.data.ids import encode
from charlm.inference import evaluate, restore
from charlm.rundir.run import Run

LANES, LENGTH = 128, 100


def main() -> None:
    workdir, which = sys.argv[1], sys.argv[2] if len(sys.argv) > 2 else "best"
    trained = restore.load(workdir, which)
    encoded = encode(trained.vocab, Run(workdir).splits()["validation"], "the validation split")
    stream = batches.Stream(encoded.ids_N, LANES, LENGTH, shift=False, seed=0)
    true = list(batches.once_through(stream))
    targets_BS = true[-1].targets_BS.copy()
    targets_BS[:, -1] = true[0].inputs_BT[:, 0]
    slipped = [*true[:-1], true[-1]._replace(targets_BS=targets_BS)]
    whole = list(batches.evaluation_windows(encoded.ids_N, LENGTH, LANES))
    window = jax.jit(evaluate.make_window(trained.functions))
    for name, read in (("as published", slipped), ("true last targets", true), ("whole split, 128 lanes from zero", whole)):
        print(json.dumps({"protocol": name, "step": trained.step, **scored(window, trained, read)}))


def scored(window, trained: restore.Trained, read: list[batches.Batch]) -> dict:
    """Returns the loss and the number of scored characters. The state is carried from batch to batch."""
    carry, sums = trained.functions.zero_carry(LANES), []
    for batch in read:
        row_sums, carry = window(trained.params, batch, carry)
        sums.append(jax.device_get(row_sums))
    nats, chars = np.asarray(sums, np.float64).sum((0, 2))
    return {**measures.of_nats(nats / chars), "chars": int(chars)}


if __name__ == "__main__":
    main()
