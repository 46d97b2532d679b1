"""The sampling loop against a simple loop in Python; temperature, top-k and top-p against the exact probabilities."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from charlm.data.batches import Batch
from charlm.data.vocab import Vocab
from charlm.inference.sample import CHUNK, Decoding, pick, sampler, until_end
from charlm.models import stack
from configs import base

VOCAB = 7
PLAIN = Vocab("abcdefg")
PROMPT = np.array([3, 1, 4, 1, 5], np.uint8)


@pytest.fixture(scope="module")
def trained():
    config = base.get_config()
    config.model.update({"hidden": 10, "layers": 2, "input": "onehot"})
    functions = stack.functions(config, VOCAB)
    params = jax.tree.map(lambda leaf: leaf * 3, jax.jit(functions.init)(jax.random.key(2)))
    return functions, params


def draw(trained, decoding, rows=1, length=150, seed=0, prompt=PROMPT, vocab=PLAIN, window=0):
    functions, params = trained
    generate = sampler(functions, vocab, decoding.top_k, decoding.top_p, window)
    pieces = list(generate(params, prompt, rows, length, decoding.temperature, jax.random.key(seed)))
    return np.concatenate(pieces, axis=1) if pieces else np.zeros((rows, 0), int)


@pytest.mark.parametrize("window", [0, 4])
def test_the_loop_is_compiled_once_for_all_chunks(trained, window, caplog):
    functions, params = trained
    committed = jax.device_put(params, jax.devices()[0])  # training also passes params committed to a device
    with jax.log_compiles():
        draw((functions, committed), Decoding(1.0), length=3 * CHUNK, window=window)
    compiled = [record.getMessage() for record in caplog.records if "Finished XLA compilation" in record.getMessage()]
    assert len([message for message in compiled if "ed_chunk)" in message]) == 1


def greedy_by_hand(trained, prompt, length):
    """For each character, reads the whole text from its beginning and takes the argmax of the last logits."""
    functions, params = trained
    text = list(prompt)
    apply = jax.jit(functions.apply)
    for _ in range(length):
        # One shape is compiled once. Padding at the end does not change earlier logits.
        padded = np.zeros((1, len(prompt) + length), np.int32)
        padded[0, : len(text)] = text
        batch = Batch(padded, padded, np.ones(padded.shape, np.float32), np.ones(1, bool))
        logits, _ = apply(params, batch, functions.zero_carry(1))
        text.append(int(np.argmax(logits[0, len(text) - 1])))
    return text[len(prompt) :]


@pytest.mark.parametrize("prompt", [PROMPT, PROMPT[:1], np.resize(PROMPT, CHUNK), np.resize(PROMPT, 2 * CHUNK + 5)])
def test_greedy_equals_a_loop_over_the_whole_text(trained, prompt):
    drawn = draw(trained, Decoding(temperature=0), length=CHUNK + 9, prompt=prompt)
    assert drawn[0].tolist() == greedy_by_hand(trained, prompt, CHUNK + 9)


def test_same_seed_same_text_and_a_longer_sample_begins_like_a_shorter_one(trained):
    short, long = (draw(trained, Decoding(), rows=3, length=length) for length in (100, 333))
    assert (short.shape, long.shape) == ((3, 100), (3, 333))
    np.testing.assert_array_equal(short, long[:, :100])
    assert not np.array_equal(short, draw(trained, Decoding(), rows=3, length=100, seed=1))
    assert not np.array_equal(short[0], short[1])


def test_length_zero_draws_nothing(trained):
    assert draw(trained, Decoding(), length=0).shape == (1, 0)


def test_pad_and_unk_are_never_drawn(trained):
    specials = Vocab("defg", ("<pad>", "<eos>", "<unk>"))
    for decoding in (Decoding(0), Decoding(5.0), Decoding(1.0, top_k=3), Decoding(2.0, top_p=0.99)):
        drawn = draw(trained, decoding, rows=4, vocab=specials, length=64)
        assert not np.isin(drawn, [0, 2]).any()
    assert (draw(trained, Decoding(5.0), rows=4, vocab=specials, length=64) == 1).any()


def test_drawing_stops_once_every_row_has_drawn_eos(trained):
    ending = Vocab("bcdefg", ("<eos>",))
    whole = draw(trained, Decoding(1.0), rows=3, length=50 * CHUNK)
    stopped = draw(trained, Decoding(1.0), rows=3, length=50 * CHUNK, vocab=ending)
    ends = (whole == 0).argmax(axis=1)
    assert (whole == 0).any(axis=1).all()
    assert ends.max() < stopped.shape[1] <= (ends.max() // CHUNK + 3) * CHUNK < whole.shape[1]
    np.testing.assert_array_equal(stopped, whole[:, : stopped.shape[1]])
    assert until_end(stopped[0], ending).tolist() == whole[0, : ends[0]].tolist()
    assert until_end(stopped[0][:0], ending).tolist() == []
    assert until_end(whole[0], PLAIN).tolist() == whole[0].tolist()


@pytest.mark.parametrize("prompt", [PROMPT, PROMPT[:1], np.resize(PROMPT, 12), np.resize(PROMPT, 40)])
def test_a_sliding_window_sees_its_own_output_from_the_zero_state(trained, prompt):
    functions, params = trained
    window, text, apply = 12, list(prompt), jax.jit(functions.apply)
    for _ in range(CHUNK + 9):
        seen = np.asarray([text[-window:]], np.int32)
        batch = Batch(seen, seen[:, -1:], np.ones((1, 1), np.float32), np.ones(1, bool))
        text.append(int(np.argmax(apply(params, batch, functions.zero_carry(1))[0][0, -1])))
    drawn = draw(trained, Decoding(0), length=CHUNK + 9, prompt=prompt, window=window)
    assert drawn[0].tolist() == text[len(prompt) :]
    if len(prompt) == 40:  # with a carried state the text would be another
        assert drawn[0].tolist() != draw(trained, Decoding(0), length=CHUNK + 9, prompt=prompt)[0].tolist()


LOGITS = np.log(np.array([0.4, 0.3, 0.15, 0.1, 0.05]))
DRAWS = 20_000


@pytest.mark.parametrize(
    ("decoding", "expected"),
    [
        (Decoding(1.0), [0.4, 0.3, 0.15, 0.1, 0.05]),
        (Decoding(0.5), np.array([0.16, 0.09, 0.0225, 0.01, 0.0025]) / 0.285),
        (Decoding(1.0, top_k=2), [4 / 7, 3 / 7, 0, 0, 0]),
        (Decoding(1.0, top_k=99), [0.4, 0.3, 0.15, 0.1, 0.05]),
        (Decoding(1.0, top_p=0.6), [4 / 7, 3 / 7, 0, 0, 0]),
        (Decoding(1.0, top_p=0.75), [8 / 17, 6 / 17, 3 / 17, 0, 0]),
        (Decoding(1.0, top_p=1e-6), [1, 0, 0, 0, 0]),
        (Decoding(1.0, top_k=3, top_p=0.8), [4 / 7, 3 / 7, 0, 0, 0]),  # of the top three, the first two sum to 0.82
        (Decoding(1e-6), [1, 0, 0, 0, 0]),
        (Decoding(1e6), [0.2] * 5),
    ],
)
def test_frequencies_equal_the_exact_probabilities(decoding, expected):
    noise = jax.random.gumbel(jax.random.key(7), (DRAWS, 5))
    logits = jnp.broadcast_to(jnp.asarray(LOGITS, jnp.float32), (DRAWS, 5))
    counts = np.bincount(pick(logits, noise, decoding), minlength=5)
    expected = np.asarray(expected) * DRAWS
    assert counts[expected == 0].sum() == 0
    kept = expected > 0
    chi_squared = ((counts[kept] - expected[kept]) ** 2 / expected[kept]).sum()
    assert chi_squared < 24  # the seed is fixed; by chance one in ten thousand would exceed this with 4 degrees of freedom


@pytest.mark.slow
def test_several_devices_draw_the_same_text_as_one(script, small, tmp_path, monkeypatch):
    flags = [f"--config.{key}={value}" for key, value in small.items()]
    script("train", "--config=configs/tiny.py", f"--workdir={tmp_path / 'run'}", *flags)
    command = ("sample", f"--workdir={tmp_path / 'run'}", "--prompt=a", "--num=32", "--length=90", "--seed=4")
    monkeypatch.delenv("XLA_FLAGS", raising=False)
    shared = script(*command).stdout
    monkeypatch.setenv("XLA_FLAGS", "--xla_force_host_platform_device_count=1")
    assert script(*command).stdout == shared
    assert len(set(shared.split("--- sample "))) == 33
