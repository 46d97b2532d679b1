"""The table of config keys. The table declares each key once, with its default, rule and meaning.

To add a key, add one line to TABLE and read the key in one place as `config.SECTION.NAME`. The defaults, checks, messages,
`--helpkeys`, `configs/base.py` and the handling of older runs all use TABLE.
"""

import difflib
from collections.abc import Mapping
from typing import NamedTuple

from ml_collections import ConfigDict, FrozenConfigDict
from ml_collections.config_dict import placeholder

from charlm.config.rules import (
    ANY,
    DATASET,
    DOCUMENTS,
    ENCODING,
    FACTOR,
    FRACTION,
    FROM_0_TO_1,
    INSIDE_0_AND_1,
    LOCAL,
    NOT_EMPTY,
    NOT_NEGATIVE,
    POSITIVE,
    SEED,
    SPLIT,
    WIDTHS,
    Rule,
    one_of,
    own_cell,
)
from charlm.errors import UserError

SAME = object()  # a Key with before=SAME uses its default value for older runs too


class Key(NamedTuple):
    """One config key.

    Attributes:
      name: section and name, such as `model.hidden`.
      default: the default value. None if the key is unset by default.
      rule: the allowed values.
      meaning: what the key sets, with its unit.
      type_if_set: type of the values if the default is None. Otherwise the values have the type of the default.
      changes_results: False if the key changes only time, memory and rounding. A run may then be resumed with another value of
        the key.
      is_path: True if the value is a path. Relative paths are converted to absolute paths.
      before: the value to assume for runs that were made before the key existed. SAME stands for the key's default.
      is_seen_in_data: True if a change of the value changes only the text or the vocabulary. A run with the value of `before`
        may then be resumed with the default. No result can change unnoticed, because every resume checks that the text and the
        vocabulary are the same as before.
      only_with: names of other keys. This key has an effect only if at least one of the named keys is set. Empty if this key
        always has an effect.
      or_tuple: True if the value may also be a tuple with one value per layer. The rule then applies to each of these values.
    """

    name: str
    default: object
    rule: Rule
    meaning: str
    type_if_set: type = str
    changes_results: bool = True
    is_path: bool = False
    before: object = SAME
    is_seen_in_data: bool = False
    only_with: tuple[str, ...] = ()
    or_tuple: bool = False

    @property
    def type(self) -> type:
        return self.type_if_set if self.default is None else type(self.default)


FRAMINGS = ("stream", "chunks", "windows", "documents")
CELLS = ("lstm", "rnn", "gru", "layernorm_lstm", "mogrifier_lstm", "slstm", "mingru", "minlstm")
CELL = Rule(
    lambda value: value in CELLS or own_cell(value) is not None,
    f"one of {', '.join(CELLS)}, or FILE.py:NAME for a cell in your own file",
    CELLS,
)
KERNELS = one_of("auto", "xla", "cudnn")
INITS = one_of("orthogonal", "glorot", "axon", "pytorch", "uniform")
DTYPES = one_of("float32", "bfloat16")
PRECISIONS = one_of("tf32", "float32")
OPTIMISERS = one_of("adam", "adamw", "rmsprop", "sgd", "lion", "adafactor", "adan", "muon", "schedule_free_adamw")
AVERAGES = Rule(
    lambda value: value in ("", "ema", "tail", "nt_asgd"), "empty, ema, tail or nt_asgd", ("", "ema", "tail", "nt_asgd")
)
SCHEDULES = one_of("constant", "cosine", "trapezoid", "exponential", "step")


def _path(name: str, meaning: str, rule: Rule = NOT_EMPTY) -> Key:
    return Key(name, None, rule, meaning, is_path=True)


# Each key takes one line, or more if its meaning is long. Comparisons and trial names list keys in this order.
# fmt: off
TABLE = (
    # the whole run
    Key("seed", 0, SEED, "random seed of initial weights, dropout, the offsets of batch.shift, shuffling and samples"),
    Key("cache_dir", None, ANY,
        "folder for encoded long texts and compiled programs; None: the folder charlm in the user's cache folder; "
        "empty: no cache",
        is_path=True, changes_results=False),
    # the text
    Key("corpus.name", "tiny_shakespeare", ANY, "name of a corpus that charlm can fetch; used if corpus.path is None"),
    _path("corpus.path",
        "text file (plain, .gz or .xz), or a folder of such files; corpus.folder says how a folder is read", LOCAL),
    _path("corpus.validation_path", "path of a separate validation text; all text of corpus.path is then training text",
        LOCAL),
    _path("corpus.test_path", "path of a separate test text; needs corpus.validation_path", LOCAL),
    _path("corpus.data_dir",
        "folder of TensorFlow Datasets (TFDS); None: $TFDS_DATA_DIR if set, otherwise ~/tensorflow_datasets"),
    Key("corpus.folder", "tree", one_of("tree", "flat"),
        "how a folder is read; tree: the text files in it and in its subfolders, in natural order (2.txt before 10.txt), each "
        "ended by a line break; hidden and binary files are skipped; flat: the files directly in it, sorted by name, with "
        "nothing between them, as older versions of charlm read them",
        before="flat", is_seen_in_data=True),
    Key("corpus.encoding", "utf-8", ENCODING,
        "encoding of the text files; a file that begins with a byte-order mark is read in the encoding of that mark"),
    Key("corpus.split", (0.9, 0.1), SPLIT,
        "fractions of the characters or documents in each split: train[, validation[, test]]; each split is contiguous"),
    Key("corpus.tfds", None, DATASET, "dataset and text feature in TFDS; each example is one document"),
    Key("corpus.documents", "", DOCUMENTS,
        "how the documents are stored in corpus.path; blank: separated by blank lines; separator: separated by TEXT; "
        "files: each file is a document; empty: corpus.path is running text"),
    Key("corpus.lowercase", False, ANY, "convert the text to lower case"),
    Key("corpus.keep", "", ANY, "characters to keep; all other characters are deleted; empty: keep all characters"),
    Key("corpus.newlines", True, ANY, "convert CRLF and CR to LF"),
    # symbols and ids
    Key("vocab.source", "corpus", one_of("train", "corpus", "bytes"),
        "which symbols have ids; train: the symbols of the training split; corpus: the symbols of all splits; "
        "bytes: the 256 bytes; the text is read as UTF-8 bytes, and all lengths are in bytes",
        before="train", is_seen_in_data=True),
    Key("vocab.unknown", False, ANY, "map symbols outside the vocabulary to <unk>; False: such symbols are an error"),
    # how text becomes batches, on which devices
    Key("devices", 0, NOT_NEGATIVE,
        "maximum number of devices among which the rows of each batch are divided; on a CPU, each core can be one device; "
        "0: charlm chooses a fast number; batch.size is always a multiple of the number of devices used"),
    Key("command_buffers", False, ANY,
        "on CUDA GPUs, XLA records the loops over time in CUDA graphs (command buffers), so that the CPU does not start each "
        "operation of the loops; not yet measured",
        changes_results=False),
    Key("batch.framing", "stream", one_of(*FRAMINGS),
        "how text is cut into rows; stream: the text is cut into batch.size long pieces (lanes), which are read in parallel "
        "and carry their state from step to step; chunks, windows, documents: each row starts from the zero state"),
    Key("batch.size", 32, POSITIVE, "number of rows in a batch; the rows are lanes, chunks, windows or documents"),
    Key("batch.length", 64, POSITIVE,
        "number of characters that a step reads from each row; documents: the maximum, longer documents are cut"),
    Key("batch.shift", True, ANY,
        "stream: start each epoch at a random offset into the text; "
        "the offset is at most the number of characters at the end of the text that do not fill a whole step"),
    Key("batch.stride", 1, POSITIVE, "windows: characters between the starts of consecutive windows"),
    Key("batch.shuffle", True, ANY,
        "chunks, windows, documents: shuffle the rows in each epoch; False: keep the order of the text"),
    Key("batch.bucket", 16, POSITIVE,
        "documents: the length of each batch is rounded up to a multiple of this number of characters, "
        "so that JAX compiles programs for only a few lengths"),
    Key("batch.padding", "masked", one_of("masked", "counted"),
        "documents; masked: padding follows the text and has weight 0; counted: padding precedes the text and has weight 1"),
    Key("batch.start_symbol", True, ANY,
        "documents: read <eos> before each document, so that the model learns how documents begin and can write a document "
        "without a prompt; no effect with batch.padding=counted",
        before=False, only_with=("corpus.documents", "corpus.tfds")),
    # the network
    Key("model.cell", "lstm", CELL,
        "recurrent cell; each cell is a file in charlm/models/cells; FILE.py:NAME: the cell NAME in your own file; "
        'a tuple such as ("lstm","gru") gives each layer its own cell',
        or_tuple=True),
    Key("model.input", "embedding", one_of("embedding", "onehot", "scalar"),
        "input of the first layer; scalar: the character's id divided by the size of the vocabulary"),
    Key("model.embedding", 128, POSITIVE, "number of features of the embedding"),
    Key("model.layers", 2, POSITIVE, "number of recurrent layers"),
    Key("model.hidden", 256, POSITIVE, "number of units of each layer"),
    Key("model.widths", (), WIDTHS, "number of units of each layer, one by one; (): all layers have model.hidden units"),
    Key("model.residual", False, ANY,
        "skip connections: the input of each layer is added to the output of the layer; the first layer has a skip connection "
        "only if it reads an embedding that is as wide as the layer; all layers must have the same width"),
    Key("model.norm", False, ANY,
        "divide the input of each layer and of the head by its root mean square, and scale it by learnt factors (RMSNorm); "
        "inputs that are onehot or scalar are not divided"),
    Key("model.mlp", 0, NOT_NEGATIVE,
        "each layer of H units is followed by a feed-forward block: RMSNorm, a dense layer of model.mlp * H units with GELU, a "
        "dense layer of H units, and a skip connection; 0: no such block"),
    Key("model.tie", False, ANY,
        "the weights of the head are the transposed embedding; if the width of the last layer is not model.embedding, a learnt "
        "matrix first projects the outputs of this layer to the width of the embedding; "
        "needs model.input=embedding"),
    Key("model.dropout", 0.0, FRACTION, "fraction of outputs dropped after each layer, including the last"),
    Key("model.dropout_input", 0.0, FRACTION, "fraction of the embedding's features dropped before the first layer"),
    Key("model.dropout_hidden", 0.0, FRACTION, "fraction of outputs dropped between layers; 0.0: same as model.dropout"),
    Key("model.dropout_output", 0.0, FRACTION, "fraction of outputs dropped before the head; 0.0: same as model.dropout"),
    Key("model.dropout_kind", "step", one_of("step", "variational"),
        "masks of the dropout before, between and after layers; step: a new mask at each character; variational: each row has "
        "one mask for all characters of a window of batch.length characters"),
    Key("model.weight_drop", 0.0, FRACTION,
        "fraction of the recurrent weights dropped; one mask for all rows and characters of a training step"),
    Key("model.embedding_dropout", 0.0, FRACTION,
        "fraction of the symbols whose embedding is dropped; one mask for all rows and characters of a training step"),
    Key("model.recurrent_dropout", 0.0, FRACTION,
        "fraction dropped of the candidate, the new values that a cell adds to its state; a new mask at each character"),
    Key("model.zoneout_cell", 0.0, FRACTION,
        "fraction of the units of the cell state c that keep the value that they had after the previous character; evaluations "
        "use the expected value"),
    Key("model.zoneout_hidden", 0.0, FRACTION,
        "fraction of the units of the hidden state h that keep the value that they had after the previous character; "
        "evaluations use the expected value"),
    Key("model.state_noise", 0.0, FRACTION,
        "fraction of the rows of a window that begin with a random state instead of the carried state; so the model learns to "
        "return from states that the training text rarely or never causes"),
    Key("model.ar", 0.0, NOT_NEGATIVE,
        "activation regularisation: the mean square of the last layer's outputs, times this factor, is added to the loss that "
        "the training minimises; reported losses do not include it"),
    Key("model.tar", 0.0, NOT_NEGATIVE,
        "temporal activation regularisation: the mean squared difference of the last layer's outputs at successive characters, "
        "times this factor, is added to the loss that the training minimises; reported losses do not include it"),
    Key("model.init", "orthogonal", INITS,
        "initial weights; orthogonal: as in Flax; glorot: as in Keras; axon: as in Axon; pytorch: as in PyTorch; "
        "uniform: see model.init_scale"),
    Key("model.init_scale", 0.1, POSITIVE,
        "used if model.init is uniform: weights are drawn uniformly from -model.init_scale to +model.init_scale"),
    Key("model.head_scale", 0.0, NOT_NEGATIVE,
        "initial weights of the head are drawn uniformly from -model.head_scale to +model.head_scale, and its biases are 0; "
        "0.0: model.init also chooses the initial weights and biases of the head"),
    Key("model.forget_bias", 1.0, ANY, "initial bias of the forget gate"),
    Key("model.mogrifier_rounds", 5, NOT_NEGATIVE,
        "mogrifier_lstm: number of rounds before each step of the LSTM; in turn, the state scales the input in one round, and "
        "the input scales the state in the next round; 0: the plain LSTM"),
    Key("model.mogrifier_rank", 0, NOT_NEGATIVE,
        "mogrifier_lstm: rank of the kernel of each round; the kernel is then the product of two thin matrices; 0: the kernel "
        "is a full matrix"),
    Key("model.slstm_heads", 1, POSITIVE,
        "slstm: number of heads; a unit reads only the units of its own head; must divide the number of "
        "units of each layer"),
    Key("model.dtype", "float32", DTYPES, "data type of the operands in matrix products; state and weights are always float32"),
    Key("model.precision", "tf32", PRECISIONS,
        "how GPUs and TPUs multiply float32 operands; tf32: in TF32 on GPUs that have it, as three bfloat16 products on TPUs; "
        "float32: in float32 on GPUs, as six bfloat16 products on TPUs; a CPU always multiplies in float32"),
    Key("model.kernel", "auto", KERNELS,
        "program that runs an LSTM layer over a window; xla: charlm's loop over time; cudnn: NVIDIA's library, on CUDA GPUs, "
        "for model.dtype=float32 without recurrent dropout and zoneout; auto: xla",
        changes_results=False),
    Key("model.unroll", 1, POSITIVE,
        "number of steps that XLA compiles as one iteration of a loop over time; more may be faster on GPUs, but takes longer "
        "to compile",
        changes_results=False),
    # the optimiser and its learning rate
    Key("optim.name", "adam", OPTIMISERS, "the optimiser; configs/README.md lists published settings"),
    Key("optim.learning_rate", 3e-3, POSITIVE, "peak learning rate; optim.weight_rms replaces it"),
    Key("optim.schedule", "cosine", SCHEDULES,
        "learning-rate schedule; trapezoid: constant, then linear decay over the last optim.decay_steps steps"),
    Key("optim.warmup_steps", 0, NOT_NEGATIVE, "steps of linear warm-up from 0"),
    Key("optim.final_fraction", 0.01, FROM_0_TO_1, "cosine, trapezoid: final learning rate as a fraction of the peak"),
    Key("optim.decay_rate", 0.5, FACTOR,
        "exponential, step: the learning rate is multiplied by this factor every optim.decay_steps steps, "
        "or every optim.decay_epochs epochs"),
    Key("optim.decay_steps", 1000, POSITIVE,
        "exponential, step: number of steps after which the learning rate has been multiplied once more by optim.decay_rate; "
        "trapezoid: length of the final decay in steps; used if optim.decay_epochs is 0"),
    Key("optim.decay_epochs", 0.0, NOT_NEGATIVE,
        "replaces optim.decay_steps by a number of epochs; optim.decay_after is then also in epochs; 0.0: optim.decay_steps is "
        "used, and optim.decay_after is in steps"),
    Key("optim.decay_after", 0.0, NOT_NEGATIVE,
        "exponential, step: after the warm-up, the learning rate is constant for this number of steps (epochs if "
        "optim.decay_epochs is set); step: the first multiplication comes at the end of this time; 0.0: the "
        "schedule begins directly after the warm-up"),
    Key("optim.beta1", 0.9, FRACTION,
        "adam, adamw, adan, muon: decay rate of the running mean of the gradient; lion: the update is the sign of "
        "optim.beta1 * (running mean of the gradient) + (1 - optim.beta1) * gradient; schedule_free_adamw: the gradient is "
        "taken at the weights optim.beta1 * (average of the weights) + (1 - optim.beta1) * (raw weights)"),
    Key("optim.beta2", 0.999, FRACTION,
        "adam, adamw, rmsprop, adan, muon, schedule_free_adamw: decay rate of the running mean of the squared gradient; "
        "lion: decay rate of the running mean of the gradient"),
    Key("optim.beta3", 0.92, FRACTION, "adan: decay rate of the running mean of the difference between successive gradients"),
    Key("optim.eps", 1e-8, POSITIVE,
        "adam, adamw, rmsprop, adan, muon, schedule_free_adamw: constant added to the root of the mean squared gradient"),
    Key("optim.eps_form", "outer", one_of("outer", "keras"),
        "where optim.eps is added; outer: to the root of the mean squared gradient; keras: Adam adds it to the root "
        "before the bias correction, as MXNet also does, and RMSprop adds it inside the root"),
    Key("optim.momentum", 0.0, FRACTION, "sgd: momentum; adafactor: decay rate of the running mean of the update"),
    Key("optim.muon_momentum", 0.95, FRACTION, "muon: momentum of the matrices; all other parameters are updated by Adam"),
    Key("optim.clip_norm", 1.0, NOT_NEGATIVE, "maximum global norm of the gradient; 0.0: no clipping"),
    Key("optim.clip_value", 0.0, NOT_NEGATIVE, "maximum absolute value of a gradient element; 0.0: no clipping"),
    Key("optim.weight_decay", 0.0, NOT_NEGATIVE,
        "weight decay; adam, rmsprop, sgd: L2 regularisation; all other optimisers: decoupled from the gradient; "
        "weight_decay_epochs replaces it"),
    Key("optim.weight_decay_epochs", 0.0, NOT_NEGATIVE,
        "replaces optim.weight_decay by a time in epochs, which need not change with the size of the text or the batch: at the "
        "peak learning rate, the decay alone would divide the weights by e in this time; not for adam, rmsprop and sgd; 0.0: "
        "optim.weight_decay is used"),
    Key("optim.weight_rms", 0.0, NOT_NEGATIVE,
        "replaces optim.learning_rate by a size of the weights, which need not change with the size of the text: at the peak "
        "learning rate, random updates and weight decay would keep the weights at this root mean square; needs "
        "weight_decay_epochs; 0.0: optim.learning_rate is used"),
    Key("optim.average", "", AVERAGES,
        "kind of average of the weights over the steps; the average is evaluated, sampled and exported, while the training "
        "goes on with the raw weights; ema: exponential mean; tail: mean over the last steps; nt_asgd: mean over all steps "
        "after the validation loss stops improving; empty: no average"),
    Key("optim.average_decay", 0.999, INSIDE_0_AND_1, "ema: decay rate of the exponential mean; the mean is corrected for bias",
        only_with=("optim.average",)),
    Key("optim.average_last", 0.25, FACTOR,
        "tail: the mean is taken over this fraction of the training steps, at the end of the training",
        only_with=("optim.average",)),
    Key("optim.average_patience", 5, NOT_NEGATIVE,
        "nt_asgd: the mean begins when a new validation loss is higher than the lowest earlier validation loss; this "
        "comparison leaves out the last optim.average_patience of the earlier losses",
        only_with=("optim.average",)),
    Key("optim.decay_biases", False, ANY, "apply weight decay to biases too, as in MXNet; False: apply it only to matrices"),
    # first parameters, length, logging, evaluations and checkpoints
    _path("train.init_from",
        "another run, written as RUN or RUN:CHECKPOINT; the new run begins with the parameters of this checkpoint; CHECKPOINT "
        "is best (the default), latest or a step; None: random initial parameters"),
    Key("train.epochs", 3.0, POSITIVE, "length of the training in epochs; used if train.steps is 0"),
    Key("train.steps", 0, NOT_NEGATIVE, "length of the training in steps; 0: train.epochs sets the length"),
    Key("train.least_steps", 0, NOT_NEGATIVE,
        "if train.epochs sets the length, the training has at least this number of steps; small texts then get more epochs"),
    Key("train.steps_per_call", 0, NOT_NEGATIVE,
        "training steps in one call of the jitted function; 0: up to ten if steps are short, otherwise one",
        changes_results=False),
    Key("train.log_every", 50, POSITIVE, "steps between two rows of metrics"),
    Key("train.eval_every", 0, NOT_NEGATIVE,
        "steps between evaluations; 0: one evaluation per epoch; the last step is always evaluated"),
    Key("train.checkpoint_every", 500, NOT_NEGATIVE,
        "steps between checkpoints; each evaluation also writes a checkpoint; 0: checkpoints only at evaluations"),
    Key("train.patience", 0, NOT_NEGATIVE,
        "training stops early after this number of successive evaluations without a new best loss; 0: no early stopping"),
    Key("train.halvings", 0, NOT_NEGATIVE,
        "how many times a diverged run restarts from its last checkpoint with half the learning rate; 0: a diverged run ends"),
    Key("train.best", "validation", one_of("validation", "train"),
        "which loss selects the best checkpoint; train: mean training loss since the last evaluation"),
    # evaluations
    Key("eval.framing", None, one_of(*FRAMINGS),
        "framing of evaluations; evaluations also use batch.length and batch.stride; None: same as batch.framing"),
    Key("eval.rows", 64, POSITIVE,
        "chunks, windows, documents: rows evaluated at once; changes only the speed, not the result"),
    Key("eval.length", 512, POSITIVE, "stream: characters evaluated at once; changes only the memory use, not the result"),
    Key("eval.lanes", 1, POSITIVE,
        "stream: number of pieces (lanes) of the split that are evaluated in parallel; "
        "1: the result is exact, because the state is carried through the whole split"),
    Key("eval.burn_in", 1000, NOT_NEGATIVE,
        "stream: each piece except the first starts this many characters early; they warm up the state and are not scored"),
    # samples during training, and the defaults of `charlm sample`
    Key("sample.prompt", None, NOT_EMPTY,
        "prompt of samples; None: the start of the validation split, or of the training split if there is no validation split; "
        "with batch.start_symbol and documents, None is an empty prompt"),
    Key("sample.length", 300, NOT_NEGATIVE,
        "characters in each sample, also for `charlm sample`; 0: no samples during training"),
    Key("sample.temperature", 0.8, NOT_NEGATIVE, "sampling temperature; 0.0: always choose the most probable character"),
    Key("sample.top_k", 0, NOT_NEGATIVE, "sample from the k most probable characters; 0: sample from all characters"),
)
# fmt: on
KEYS = {key.name: key for key in TABLE}
# Keys whose values are long paths. Tables and names of trials show only the last part of the path, such as `cell.py:NAME`.
SHOWN_BY_LAST_PART = frozenset(key.name for key in TABLE if key.is_path or key.rule is CELL)
TEXT_PATHS = tuple(key.name for key in TABLE if key.rule is LOCAL)
RUN_PATHS = ("train.init_from",)
# The keys that --extend may change: the length of the training, the learning rate, evaluations, checkpoints and samples.
EXTENDABLE = frozenset(
    key.name
    for key in TABLE
    if key.name.partition(".")[0] in ("eval", "sample")
    or (key.name.startswith("train.") and key.name not in ("train.init_from", "train.best"))
    or key.name.removeprefix("optim.") in ("learning_rate", "weight_rms", "schedule", "warmup_steps", "final_fraction")
    or (key.name.startswith("optim.decay_") and key.name != "optim.decay_biases")
)
# The keys that set when charlm logs, evaluates and saves, and how it evaluates and samples; see `resumable`.
RESUMABLE = frozenset(
    key.name
    for key in TABLE
    if key.name.partition(".")[0] in ("eval", "sample")
    or key.name in ("train.log_every", "train.eval_every", "train.checkpoint_every")
)
CHANGE_NO_RESULT = frozenset(key.name for key in TABLE if not key.changes_results)
# For the keys with `is_seen_in_data`: name → (value for older runs, default).
NEW_DEFAULTS = {key.name: (key.before, key.default) for key in TABLE if key.is_seen_in_data}
SECTIONS = frozenset(key.name.rpartition(".")[0] for key in TABLE) - {""}


def defaults(type_safe: bool = True) -> ConfigDict:
    """Returns a config with the default of every key.

    Args:
      type_safe: whether ml_collections raises an error at once if a value of another type is set.
    """
    config = ConfigDict(type_safe=type_safe)
    for key in TABLE:
        section = config
        for part in key.name.split(".")[:-1]:
            if part not in section:
                section[part] = ConfigDict(type_safe=type_safe)
            section = section[part]
        section[key.name.split(".")[-1]] = placeholder(key.type) if key.default is None else key.default
    return config


def cell_names(config: ConfigDict | FrozenConfigDict) -> tuple[str, ...]:
    """The name of each layer's cell. `model.cell` is a tuple of these names, or one name for all layers."""
    name = config.model.cell
    return (name,) * config.model.layers if isinstance(name, str) else tuple(name)


def own_cells(config: ConfigDict) -> list[str]:
    """The names FILE.py:NAME in `model.cell`, each name once. Empty if all cells are charlm's."""
    return [name for name in dict.fromkeys(cell_names(config)) if own_cell(name)]


def resumable(config: Mapping[str, object]) -> frozenset[str]:
    """The keys that may differ when a run is resumed, because they do not change the parameters of the model.

    With `train.patience`, evaluations decide when the training ends. With `train.halvings`, a diverged run goes back to its
    last checkpoint, and each evaluation writes a checkpoint. With `optim.average=nt_asgd`, evaluations decide when the average
    of the parameters begins. In these three cases, some of the keys do change the parameters, and are not returned.

    Args:
      config: the config of the run, dotted key → value.
    """
    changing: set[str] = set()
    if config.get("train.patience") or config.get("optim.average") == "nt_asgd":
        changing |= {name for name in RESUMABLE if name.startswith("eval.")} | {"train.eval_every"}
    if config.get("train.halvings"):
        changing |= {"train.eval_every", "train.checkpoint_every"}
    return RESUMABLE - changing


def before_keys_existed() -> dict[str, object]:
    """Returns the value of each key for runs that were made before the key existed.

    The values are JSON values, so tuples are lists.
    """
    values = {key.name: key.default if key.before is SAME else key.before for key in TABLE}
    return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}


def effective(saved: Mapping[str, object]) -> dict[str, object]:
    """Completes a saved config, so that it can be compared with other configs. Returns the values of all keys.

    A key that did not exist when the config was saved gets its value for older runs. A key that has no effect, because no key
    in its `only_with` is set, gets its default.

    Args:
      saved: dotted key → JSON value.
    """
    values = before_keys_existed() | dict(saved)
    idle = [key for key in TABLE if key.only_with and not any(values.get(other) for other in key.only_with)]
    return values | {key.name: key.default for key in idle}


def known(name: str) -> str:
    """Returns the name if it is a key. Otherwise raises a UserError that names the nearest key, or a key of the section."""
    if name in SECTIONS:
        example = next(key for key in KEYS if key.startswith(f"{name}."))
        raise UserError(f"config key {name!r} is a section: set its keys, such as {example}.")
    if name not in KEYS:
        last = name.split(".")[-1]
        same_name = [key for key in KEYS if key.split(".")[-1] == last]
        close = difflib.get_close_matches(name, KEYS, n=1, cutoff=0.6)
        with_this_word = [key for key in KEYS if last in key.split(".")[-1].split("_")]
        nearest = difflib.get_close_matches(name, KEYS, n=1, cutoff=0.0)
        raise UserError(
            f"unknown config key {name!r}: the nearest key is {[*same_name, *close, *with_this_word, *nearest][0]!r}."
        )
    return name


def ending_in(name: str) -> list[str]:
    """The keys that are equal to `name`, and the keys that end with a dot and `name`, such as `model.hidden` for `hidden`."""
    return [key for key in KEYS if f".{key}".endswith(f".{name}")]


def full_name(name: str) -> str:
    """The key that a user means by its name or by an ending of its name, such as `model.hidden` for `hidden`.

    Raises:
      UserError: no key has this ending, and the message names the nearest key. Or several keys have this ending, and the
        message names these keys.
    """
    candidates = ending_in(name)
    if name in KEYS or not candidates:
        return known(name)
    if len(candidates) > 1:
        raise UserError(f"config key {name!r} is ambiguous: write {', '.join(candidates[:-1])} or {candidates[-1]}.")
    return candidates[0]


def short(name: str) -> str:
    """The shortest unique ending of a key, such as `hidden` or `optim.name`. An unknown key is returned unchanged."""
    parts = name.split(".")
    endings = [".".join(parts[-count:]) for count in range(1, len(parts) + 1)]
    return next((ending for ending in endings if len(ending_in(ending)) == 1), name)
