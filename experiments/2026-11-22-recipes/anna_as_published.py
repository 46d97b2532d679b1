"""The validation loss of an Anna run as Udacity's notebook computes it, and without the notebook's one mistake.

    .venv/bin/python experiments/2026-11-22-recipes/anna_as_published.py WORKDIR [best|latest|STEP]

The notebook reads the validation text in 128 lanes, each from the zero state, 100 characters at a time. It leaves out what
does not fill a batch: the last 6,523 of its 198,523 characters, all of them Project Gutenberg's licence. The last target of
each lane is wrong: it is the lane's own first character. The notebook prints the mean over batches. These have one size, so it
is the mean over characters.

Three lines are printed: the loss as published, the same with the true last targets, and the loss of the whole split. The third
reads 128 lanes from the zero state; the run `anna_weight_decay` logged it while training.
"""

import json
import sys

import jax
import numpy as np

from charlm import measures
from charlm.data import batches
from charlm.inference import evaluate, restore
from charlm.rundir.run import Run

LANES, LENGTH = 128, 100


def main() -> None:
    workdir, which = sys.argv[1], sys.argv[2] if len(sys.argv) > 2 else "best"
    trained = restore.load(workdir, which)
    encoded = batches.encode(trained.vocab, Run(workdir).splits()["validation"], "the validation split")
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
    """Returns nats and number of the scored characters; the state is carried from batch to batch."""
    carry, sums = trained.functions.zero_carry(LANES), []
    for batch in read:
        row_sums, carry = window(trained.params, batch, carry)
        sums.append(jax.device_get(row_sums))
    nats, chars = np.asarray(sums, np.float64).sum((0, 2))
    return {**measures.of_nats(nats / chars), "chars": int(chars)}


if __name__ == "__main__":
    main()
