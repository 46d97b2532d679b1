"""Measures sampling of one stream at temperature 0.8, in turn: charlm's jitted loop, and PyTorch's nn.LSTM char by char.

.venv/bin/python experiments/2026-11-22-first-figures/sample_against_torch.py /path/to/python-with-torch [rounds]
"""

import statistics
import subprocess
import sys
import time

SHAPES = {"2 x 128": 128, "2 x 256": 256, "2 x 512": 512}
TORCH = """
import sys, time, torch
hidden, chars = int(sys.argv[1]), int(sys.argv[2])
embed, lstm, head = torch.nn.Embedding(65, hidden), torch.nn.LSTM(hidden, hidden, 2), torch.nn.Linear(hidden, 65)
with torch.inference_mode():
    def run(chars):
        ids, state = torch.zeros(1, 1, dtype=torch.long), None
        for _ in range(chars):
            out, state = lstm(embed(ids), state)
            ids = torch.multinomial(torch.softmax(head(out)[0] / 0.8, -1), 1)
    run(50)
    begin = time.perf_counter()
    run(chars)
print(chars / (time.perf_counter() - begin))
"""


def charlm_rate(hidden: int, chars: int) -> float:
    import jax
    import numpy as np

    from charlm.config import keys
    from charlm.data.vocab import Vocab
    from charlm.inference import sample
    from charlm.models import stack

    config = keys.defaults()
    config.model.update({"hidden": hidden, "embedding": hidden})
    functions = stack.functions(config, 65)
    params = jax.jit(functions.init)(jax.random.key(0))
    generate = sample.sampler(functions, Vocab("".join(map(chr, range(65)))))
    prompt = np.zeros(1, np.uint8)
    list(generate(params, prompt, 1, sample.CHUNK, 0.8, jax.random.key(0)))  # compiles
    begin = time.perf_counter()
    drawn = sum(piece.shape[1] for piece in generate(params, prompt, 1, chars, 0.8, jax.random.key(1)))
    assert drawn == chars
    return chars / (time.perf_counter() - begin)


def main() -> None:
    torch_python, rounds = sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 3
    for name, hidden in SHAPES.items():
        pairs = []
        for _ in range(rounds):
            torch = subprocess.run([torch_python, "-c", TORCH, str(hidden), "1000"], check=True, capture_output=True)
            pairs.append((charlm_rate(hidden, 6400), float(torch.stdout)))
        mine, torch = (statistics.median(column) for column in zip(*pairs, strict=True))
        ratios = sorted(a / b for a, b in pairs)
        print(
            f"{name}: charlm {mine:,.0f} chars/s, PyTorch {torch:,.0f} chars/s, "
            f"ratio {statistics.median(ratios):.1f} ({ratios[0]:.1f} to {ratios[-1]:.1f})",
            flush=True,
        )


if __name__ == "__main__":
    main()
