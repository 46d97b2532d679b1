"""Measures time and peak memory for reading and encoding 100 MB of text.

.venv/bin/python experiments/2026-11-22-first-figures/encode.py
"""

import pathlib
import resource
import tempfile
import time

from charlm.config import keys
from charlm.data import corpora
from charlm.data.ids import encode
from charlm.data.vocab import Vocab


def peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        file = pathlib.Path(folder) / "large.txt"
        line = "The quick brown fox jumps over the lazy dog; 0123456789 times, caf\u00e9 na\u00efve.\n".encode()
        with file.open("wb") as handle:
            for _ in range(100_000_000 // (len(line) * 1000)):
                handle.write(line * 1000)
        size, before = file.stat().st_size, peak_bytes()
        config = keys.defaults()
        config.corpus.path, config.cache_dir = str(file), folder
        begin = time.perf_counter()
        corpus = corpora.load(config)
        loaded = time.perf_counter()
        vocab = Vocab.of(corpora.symbols_in(corpus.splits["train"]), unknown=False)
        encode_begin = time.perf_counter()
        ids = {name: encode(vocab, text, name) for name, text in corpus.splits.items()}
        end = time.perf_counter()
        chars, ratio = sum(map(len, ids.values())), (peak_bytes() - before) / size
        print(f"{size / 1e6:.0f} MB, {chars:,} chars: read, checked and cut in {loaded - begin:.1f} s,", end=" ")
        print(f"encoded in {end - encode_begin:.1f} s, all in {end - begin:.1f} s; peak memory {ratio:.1f} times its size")


if __name__ == "__main__":
    main()
