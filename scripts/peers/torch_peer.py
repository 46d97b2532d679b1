"""Measures how fast PyTorch trains, evaluates and samples. worker.py describes the input and output of this program.

Training uses nn.LSTM, or nn.GRU or nn.RNN. They call oneDNN on a CPU. If PyTorch sees a GPU of NVIDIA, training runs there and
they call cuDNN, which rounds float32 operands to TF32.

For sampling, the program first times this module, its cell such as nn.LSTMCell, and packed weights (see `packed`), and then
measures the fastest variant. For an evaluation, the variants are the module with windows of several lengths, and packed
weights. Sampling and evaluation run on the CPU.
"""

import copy
import math
import time

import numpy as np
import torch
import worker


class CharRNN(torch.nn.Module):
    def __init__(self, job: dict):
        super().__init__()
        self.vocab, self.cell, embedding = job["vocab"], job["cell"], job["embedding"]
        self.embed = torch.nn.Embedding(self.vocab, embedding) if embedding else None
        module = {"lstm": torch.nn.LSTM, "gru": torch.nn.GRU, "rnn": torch.nn.RNN}[self.cell]
        self.rnn = module(embedding or self.vocab, job["hidden"], job["layers"], batch_first=True)
        self.head = torch.nn.Linear(job["hidden"], self.vocab)

    def encode(self, ids):
        return self.embed(ids) if self.embed is not None else torch.nn.functional.one_hot(ids, self.vocab).float()

    def forward(self, ids_BT, state):
        out, state = self.rnn(self.encode(ids_BT), state)
        return self.head(out), state


def main() -> None:
    job = worker.job()
    torch.manual_seed(0)
    {"train": train, "evaluate": evaluate, "sample": sample}[job["task"]](job)


def train(job: dict) -> None:
    batch, length, vocab = job["batch"], job["length"], job["vocab"]
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda":
        torch.set_float32_matmul_precision("high")  # TF32; for LSTMs, PyTorch allows TF32 by default
    model = CharRNN(job).to(device)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3, fused=True)
    # The gradients of float16 are scaled, so that small ones do not become 0.
    scaler = torch.amp.GradScaler(device, enabled=job["dtype"] == "float16")
    ids = torch.from_numpy(np.random.default_rng(0).integers(0, vocab, (20, batch, length + 1))).to(device)
    state = torch.zeros(job["layers"], batch, job["hidden"], device=device)
    state = (state, state.clone()) if job["cell"] == "lstm" else state
    autocast_type, done = torch.float16 if job["dtype"] == "float16" else torch.bfloat16, 0

    def run(steps: int) -> int:
        nonlocal state, done
        for _ in range(steps):
            window_BT = ids[done % len(ids)]
            done += 1
            optimizer.zero_grad()
            with torch.autocast(device, autocast_type, enabled=job["dtype"] != "float32"):
                logits, new = model(window_BT[:, :-1], state)
                loss = torch.nn.functional.cross_entropy(logits.reshape(-1, vocab), window_BT[:, 1:].reshape(-1))
            scaler.scale(loss).backward()
            scaler.unscale_(optimizer)
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            scaler.step(optimizer)
            scaler.update()
            state = tuple(part.detach().float() for part in new) if job["cell"] == "lstm" else new.detach().float()
        if device == "cuda":
            torch.cuda.synchronize()
        return steps * batch * length

    def peak_device_bytes() -> int | None:
        return torch.cuda.max_memory_allocated() if device == "cuda" else None

    worker.serve(run, peak_device_bytes, parameters=parameter_count(model))


def parameter_count(model: CharRNN) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def evaluate(job: dict) -> None:
    batch, length = job["batch"], job["length"]
    model = CharRNN(job).eval()
    is_bfloat16 = job["dtype"] == "bfloat16"
    ids = torch.from_numpy(np.random.default_rng(0).integers(0, job["vocab"], (20, batch, length + 1)))
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=is_bfloat16):
        variants = {f"nn.{model.cell.upper()}, {steps} steps": by_window(model, steps) for steps in (32, 128, length)}
        variants["packed"] = char_by_char(packed(model, batch))
        if is_bfloat16:
            variants["packed, bfloat16 weights"] = char_by_char(packed(copy.deepcopy(model).to(torch.bfloat16), batch))
        seconds = lowest_seconds(variants, lambda read: read(ids[0, :, :257], None))
        fastest = min(seconds, key=seconds.get)
        read, state, done = variants[fastest], None, 0

        def run(windows: int) -> int:
            nonlocal state, done
            nats = 0.0
            for _ in range(windows):
                window_nats, state = read(ids[done % len(ids)], state)
                nats += window_nats.item()
                done += 1
            return windows * batch * length

        speeds = {name: round(256 * batch / seconds[name]) for name in variants}
        worker.serve(run, form=fastest, chars_per_second=speeds, parameters=parameter_count(model))


def lowest_seconds(variants: dict, run) -> dict[str, float]:
    """The time that `run` takes with each variant: the lowest of three times, after a warm-up. The variants run in turn."""
    seconds = dict.fromkeys(variants, math.inf)
    for number in range(4):
        for name, variant in variants.items():
            begin = time.perf_counter()
            run(variant)
            if number:
                seconds[name] = min(seconds[name], time.perf_counter() - begin)
    return seconds


def by_window(model: CharRNN, steps: int):
    """Returns a function (ids_BT, state) → (sum of the nats, state) that reads `steps` characters of each lane at once."""

    def read(ids_BT, state):
        nats = 0.0
        for begin in range(0, ids_BT.shape[1] - 1, steps):
            piece_BT = ids_BT[:, begin : begin + steps + 1]
            logits_BTV, state = model(piece_BT[:, :-1], state)
            nats = nats + summed_nats(logits_BTV, piece_BT[:, 1:])
        return nats, state

    return read


def char_by_char(next_logits):
    """Returns a function like `by_window`, which reads one character of each lane at once."""

    def read(ids_BT, state):
        logits = []
        for ids_B in ids_BT[:, :-1].unbind(1):
            logits_BV, state = next_logits(ids_B, state)
            logits.append(logits_BV)
        return summed_nats(torch.stack(logits, 1), ids_BT[:, 1:]), state

    return read


def summed_nats(logits_BTV, targets_BT):
    return torch.nn.functional.cross_entropy(logits_BTV.float().flatten(0, 1), targets_BT.flatten(), reduction="sum")


def sample(job: dict) -> None:
    batch = job["batch"]
    model = CharRNN(job).eval()
    is_bfloat16 = job["dtype"] == "bfloat16"
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=is_bfloat16):
        name = f"nn.{model.cell.upper()}"
        variants = {name: stepped(model), f"{name}Cell": by_cells(model), "packed": packed(model, batch)}
        if is_bfloat16:  # autocast rounds the weights again for each character; this variant rounds the weights only once
            variants["packed, bfloat16 weights"] = packed(copy.deepcopy(model).to(torch.bfloat16), batch)
        seconds = lowest_seconds(variants, lambda next_logits: draw(next_logits, batch, 200))
        fastest = min(seconds, key=seconds.get)
        speeds = {name: round(200 * batch / seconds[name]) for name in variants}
        details = {"form": fastest, "chars_per_second": speeds, "parameters": parameter_count(model)}
        worker.serve(lambda chunks: draw(variants[fastest], batch, chunks * 64), **details)


def draw(next_logits, batch: int, chars: int) -> int:
    ids_B, state = torch.zeros(batch, dtype=torch.long), None
    for _ in range(chars):
        logits_BV, state = next_logits(ids_B, state)
        ids_B = torch.multinomial(torch.softmax(logits_BV.float() / 0.8, -1), 1)[:, 0]
    return chars * batch


def stepped(model: CharRNN):
    def next_logits(ids_B, state):
        out, state = model.rnn(model.encode(ids_B[:, None]), state)
        return model.head(out[:, 0]), state

    return next_logits


def by_cells(model: CharRNN):
    module = {"lstm": torch.nn.LSTMCell, "gru": torch.nn.GRUCell, "rnn": torch.nn.RNNCell}[model.cell]
    cells = []
    for layer in range(model.rnn.num_layers):
        cell = module(getattr(model.rnn, f"weight_ih_l{layer}").shape[1], model.rnn.hidden_size)
        for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"):
            setattr(cell, name, getattr(model.rnn, f"{name}_l{layer}"))
        cells.append(cell)

    def next_logits(ids_B, state):
        x, new = model.encode(ids_B), []
        for cell, before in zip(cells, state or [None] * len(cells), strict=True):
            state = cell(x, before)
            new.append(state)
            x = state[0] if model.cell == "lstm" else state
        return model.head(x), new

    return next_logits


def packed(model: CharRNN, batch: int):
    """Returns a function that computes each layer with one matrix product, or two for the GRU.

    This product multiplies [x, h], the input and the state of the layer, by the joined input weights and recurrent weights. In
    the first layer, only h is multiplied: the product of the input and the input weights is a row that is looked up in a table.
    The GRU multiplies x and h separately, because its reset gate multiplies the product of h. All arrays have the number type
    of the model's weights.
    """
    dtype, layers = model.head.weight.dtype, range(model.rnn.num_layers)
    w_in = [getattr(model.rnn, f"weight_ih_l{k}") for k in layers]
    w_rec = [getattr(model.rnn, f"weight_hh_l{k}") for k in layers]
    if model.cell == "gru":
        return packed_gru(model, batch, w_in, w_rec)
    bias = [getattr(model.rnn, f"bias_ih_l{k}") + getattr(model.rnn, f"bias_hh_l{k}") for k in layers]
    table_VG = (model.encode(torch.arange(model.vocab)).to(dtype) @ w_in[0].T + bias[0]).to(dtype)
    joined = [torch.cat([w_in[k], w_rec[k]], 1).T.contiguous() for k in layers[1:]]
    first = w_rec[0].T.contiguous()
    zeros = torch.zeros(batch, model.rnn.hidden_size, dtype=dtype)

    def cell(z_BG, c_BH):
        if model.cell == "rnn":
            return torch.tanh(z_BG), c_BH
        i, f, g, o = z_BG.chunk(4, -1)
        c_BH = torch.sigmoid(f) * c_BH + torch.sigmoid(i) * torch.tanh(g)
        return torch.sigmoid(o) * torch.tanh(c_BH), c_BH

    def next_logits(ids_B, state):
        state = state or [(zeros, zeros)] * len(layers)
        h, c = state[0]
        x, c = cell(torch.addmm(table_VG[ids_B], h, first), c)
        new = [(x, c)]
        for (h, c), weights, layer_bias in zip(state[1:], joined, bias[1:], strict=True):
            x, c = cell(torch.addmm(layer_bias, torch.cat([x, h], 1), weights), c)
            new.append((x, c))
        return model.head(x), new

    return next_logits


def packed_gru(model: CharRNN, batch: int, w_in: list, w_rec: list):
    dtype, layers = model.head.weight.dtype, range(model.rnn.num_layers)
    bias_in, bias_rec = ([getattr(model.rnn, f"bias_{kind}_l{k}") for k in layers] for kind in ("ih", "hh"))
    table_VG = (model.encode(torch.arange(model.vocab)).to(dtype) @ w_in[0].T + bias_in[0]).to(dtype)
    w_in, w_rec = ([weight.T.contiguous() for weight in each] for each in (w_in, w_rec))
    zeros = torch.zeros(batch, model.rnn.hidden_size, dtype=dtype)
    columns = 2 * model.rnn.hidden_size

    def next_logits(ids_B, state):
        x, new = None, []
        for layer, h in enumerate(state or [zeros] * len(layers)):
            in_BG = table_VG[ids_B] if layer == 0 else torch.addmm(bias_in[layer], x, w_in[layer])
            rec_BG = torch.addmm(bias_rec[layer], h, w_rec[layer])
            r, z = torch.sigmoid(in_BG[:, :columns] + rec_BG[:, :columns]).chunk(2, -1)
            n = torch.tanh(in_BG[:, columns:] + r * rec_BG[:, columns:])
            x = n + z * (h - n)
            new.append(x)
        return model.head(x), new

    return next_logits


if __name__ == "__main__":
    main()
