"""Compares the sampling loop with a simple Python loop, and temperature, top-k and top-p with exact probabilities."""

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
def model():
    config = base.get_config()
    config.model.update({"hidden": 10, "layers": 2, "input": "onehot"})
    functions = stack.functions(config, VOCAB)
    params = jax.tree.map(lambda leaf: leaf * 3, jax.jit(functions.init)(jax.random.key(2)))
    return functions, params


def draw(model, decoding, rows=1, length=150, seed=0, prompt=PROMPT, vocab=PLAIN, window=0):
    functions, params = model
    generate = sampler(functions, vocab, decoding.top_k, decoding.top_p, window)
    pieces = list(generate(params, prompt, rows, length, decoding.temperature, jax.random.key(seed)))
    return np.concatenate(pieces, axis=1) if pieces else np.zeros((rows, 0), int)


@pytest.mark.parametrize("window", [0, 4])
def test_the_loop_is_compiled_once_for_all_chunks(model, window, caplog):
    functions, params = model
    committed = jax.device_put(params, jax.devices()[0])  # training also passes arrays that are committed to a device
    with jax.log_compiles():
        draw((functions, committed), Decoding(1.0), length=3 * CHUNK, window=window)
    compiled = [record.getMessage() for record in caplog.records if "Finished XLA compilation" in record.getMessage()]
    # The compiled function is `windowed_chunk` with a window, and otherwise `carried_chunk`.
    assert len([message for message in compiled if "ed_chunk)" in message]) == 1


def greedy_loop(model, prompt, length):
    """For each new character, runs the model over the whole text and takes the argmax of the last logits."""
    functions, params = model
    text = list(prompt)
    apply = jax.jit(functions.apply)
    for _ in range(length):
        # With padding, all texts have the same length, so JAX compiles only once. Padding does not change earlier logits.
        padded = np.zeros((1, len(prompt) + length), np.int32)
        padded[0, : len(text)] = text
        batch = Batch(padded, padded, np.ones(padded.shape, np.float32), np.ones(1, bool))
        logits, _ = apply(params, batch, functions.zero_carry(1))
        text.append(int(np.argmax(logits[0, len(text) - 1])))
    return text[len(prompt) :]


@pytest.mark.parametrize("prompt", [PROMPT, PROMPT[:1], np.resize(PROMPT, CHUNK), np.resize(PROMPT, 2 * CHUNK + 5)])
def test_greedy_sampling_equals_a_loop_over_the_whole_text(model, prompt):
    drawn = draw(model, Decoding(temperature=0), length=CHUNK + 9, prompt=prompt)
    assert drawn[0].tolist() == greedy_loop(model, prompt, CHUNK + 9)


def test_the_seed_determines_the_text_and_a_longer_sample_starts_with_the_shorter_sample(model):
    short, long = (draw(model, Decoding(), rows=3, length=length) for length in (100, 333))
    assert (short.shape, long.shape) == ((3, 100), (3, 333))
    np.testing.assert_array_equal(short, long[:, :100])
    assert not np.array_equal(short, draw(model, Decoding(), rows=3, length=100, seed=1))
    assert not np.array_equal(short[0], short[1])


def test_length_zero_draws_nothing(model):
    assert draw(model, Decoding(), length=0).shape == (1, 0)


def test_pad_and_unk_are_never_drawn(model):
    specials = Vocab("defg", ("<pad>", "<eos>", "<unk>"))
    for decoding in (Decoding(0), Decoding(5.0), Decoding(1.0, top_k=3), Decoding(2.0, top_p=0.99)):
        drawn = draw(model, decoding, rows=4, vocab=specials, length=64)
        assert not np.isin(drawn, [0, 2]).any()
    assert (draw(model, Decoding(5.0), rows=4, vocab=specials, length=64) == 1).any()


def test_drawing_stops_once_every_row_has_drawn_eos(model):
    ending = Vocab("bcdefg", ("<eos>",))
    whole = draw(model, Decoding(1.0), rows=3, length=50 * CHUNK)
    stopped = draw(model, Decoding(1.0), rows=3, length=50 * CHUNK, vocab=ending)
    ends = (whole == 0).argmax(axis=1)
    assert (whole == 0).any(axis=1).all()
    assert ends.max() < stopped.shape[1] <= (ends.max() // CHUNK + 3) * CHUNK < whole.shape[1]
    np.testing.assert_array_equal(stopped, whole[:, : stopped.shape[1]])
    assert until_end(stopped[0], ending).tolist() == whole[0, : ends[0]].tolist()
    assert until_end(stopped[0][:0], ending).tolist() == []
    assert until_end(whole[0], PLAIN).tolist() == whole[0].tolist()


@pytest.mark.parametrize("prompt", [PROMPT, PROMPT[:1], np.resize(PROMPT, 12), np.resize(PROMPT, 40)])
def test_sampling_with_a_sliding_window_restarts_from_the_zero_state_for_each_char(model, prompt):
    functions, params = model
    window, text, apply = 12, list(prompt), jax.jit(functions.apply)
    for _ in range(CHUNK + 9):
        seen = np.asarray([text[-window:]], np.int32)
        batch = Batch(seen, seen[:, -1:], np.ones((1, 1), np.float32), np.ones(1, bool))
        text.append(int(np.argmax(apply(params, batch, functions.zero_carry(1))[0][0, -1])))
    drawn = draw(model, Decoding(0), length=CHUNK + 9, prompt=prompt, window=window)
    assert drawn[0].tolist() == text[len(prompt) :]
    if len(prompt) == 40:  # with a carried state instead of a window, the text would differ
        assert drawn[0].tolist() != draw(model, Decoding(0), length=CHUNK + 9, prompt=prompt)[0].tolist()


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
        (Decoding(1.0, top_k=3, top_p=0.8), [4 / 7, 3 / 7, 0, 0, 0]),  # after top_k=3, the first two sum to 0.82
        (Decoding(1e-6), [1, 0, 0, 0, 0]),
        (Decoding(1e6), [0.2] * 5),
    ],
)
def test_drawn_frequencies_match_the_exact_probabilities(decoding, expected):
    noise = jax.random.gumbel(jax.random.key(7), (DRAWS, 5))
    logits = jnp.broadcast_to(jnp.asarray(LOGITS, jnp.float32), (DRAWS, 5))
    counts = np.bincount(pick(logits, noise, decoding), minlength=5)
    expected = np.asarray(expected) * DRAWS
    assert counts[expected == 0].sum() == 0
    kept = expected > 0
    chi_squared = ((counts[kept] - expected[kept]) ** 2 / expected[kept]).sum()
    assert chi_squared < 24  # with 4 degrees of freedom, only one seed in 10,000 gives more than 24; this seed is fixed


@pytest.mark.slow
def test_several_devices_draw_the_same_text_as_one_device(script, small, tmp_path, monkeypatch):
    flags = [f"--config.{key}={value}" for key, value in small.items()]
    script("train", "--config=configs/tiny.py", f"--workdir={tmp_path / 'run'}", *flags)
    command = ("sample", f"--workdir={tmp_path / 'run'}", "--prompt=a", "--num=32", "--length=90", "--seed=4")
    monkeypatch.delenv("XLA_FLAGS", raising=False)
    from_several_devices = script(*command).stdout
    monkeypatch.setenv("XLA_FLAGS", "--xla_force_host_platform_device_count=1")
    assert script(*command).stdout == from_several_devices
    assert (
        len(set(from_several_devices.split("--- sample "))) == 33
    )  # 32 different samples, and the part before the first sample
