"""Scores the validation split in pieces of 256 characters, each from the zero state, as the published losses are measured.

    python experiments/2026-11-28-cells/pieces.py runs/mingru runs/minlstm

The published losses are means over random windows of 256 characters of this split. Here the windows do not overlap.
"""

import sys

import numpy as np

import charlm

LENGTH = 256


def main() -> None:
    for workdir in sys.argv[1:]:
        model = charlm.load(workdir)
        text = model.run.splits()["validation"]
        # The first character of a piece is not scored, so each piece begins with the last character of the piece before it.
        pieces = [text[begin : begin + LENGTH + 1] for begin in range(0, len(text) - LENGTH, LENGTH)]
        nats = np.concatenate([model.surprisal(piece)[1:] for piece in pieces])
        print(f"{workdir}: {nats.mean():.4f} nats/char in {len(pieces)} pieces of {LENGTH} characters")


if __name__ == "__main__":
    main()
