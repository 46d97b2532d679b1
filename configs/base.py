"""Every key of charlm, once, with its unit and meaning. Each other config returns these plus its differences."""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from charlm.errors import UserError


def get_config(arg: str | None = None) -> ConfigDict:
    """The defaults. `arg` is what stands behind a colon in --config=FILE:ARG; no config hands one on to here that it uses."""
    if arg is not None:
        raise UserError(f"--config=FILE:{arg}: this config takes no argument; nothing behind its name would be right.")
    config = ConfigDict()
    config.seed = 0  # integer; initial weights, dropout, lane offsets, shuffling and samples follow from it
    config.devices = 0  # that share each batch, on a CPU one a core; 0: as many as there are and pay, a divisor of batch.size
    config.cache_dir = placeholder(str)  # encoded long texts, compiled programs; None: charlm in the user's cache; "": none

    config.corpus = ConfigDict()
    config.corpus.name = "tiny_shakespeare"  # a corpus that charlm knows how to get; used where path is None
    config.corpus.path = placeholder(str)  # UTF-8 text file (plain, .gz, .xz) or a folder of them, sorted and joined
    config.corpus.tfds = placeholder(str)  # DATASET:FEATURE, documents from a text feature of a dataset that TFDS has
    config.corpus.documents = ""  # "": running text; or how path holds documents: lines, csv:COLUMN, jsonl:FIELD
    config.corpus.validation_path = placeholder(str)  # validation text of its own; then path is all training text
    config.corpus.test_path = placeholder(str)  # test text of its own; needs validation_path
    config.corpus.data_dir = placeholder(str)  # TFDS folder; None: $TFDS_DATA_DIR, else ~/tensorflow_datasets
    config.corpus.split = (0.9, 0.1)  # contiguous fractions of the chars, or of the documents: train[, validation[, test]]
    config.corpus.lowercase = False  # lower-case the text
    config.corpus.keep = ""  # characters to keep, everything else is deleted; "": keep all
    config.corpus.newlines = True  # CRLF and CR become LF

    config.vocab = ConfigDict()
    config.vocab.source = "train"  # symbols of the training split ("train") or of all splits ("corpus")
    config.vocab.unknown = False  # map symbols outside the vocabulary to <unk>; False: they are an error

    config.batch = ConfigDict()
    config.batch.framing = "stream"  # stream (lanes, state carried), chunks, windows or documents (zero state each)
    config.batch.size = 32  # rows: lanes, chunks, windows or documents
    config.batch.length = 64  # chars a row a step; of documents the most, longer ones are cut
    config.batch.shift = True  # stream: begin each epoch at a random offset within the chars that fill no step
    config.batch.stride = 1  # windows: chars from the start of one to the start of the next
    config.batch.shuffle = True  # chunks, windows, documents: another order each epoch; False: as they stand
    config.batch.bucket = 16  # documents: a batch is padded to a multiple of this, so that few shapes are compiled
    config.batch.padding = "masked"  # documents: masked (after the text, weight 0) or counted (before it, weight 1)

    config.model = ConfigDict()
    config.model.cell = "lstm"  # the recurrence: a file of charlm/models/cells
    config.model.input = "embedding"  # embedding, onehot or scalar (the id divided by the vocabulary's size)
    config.model.embedding = 128  # features of the embedding
    config.model.layers = 2  # LSTM layers
    config.model.hidden = 256  # units a layer
    config.model.dropout = 0.0  # share dropped after each layer, the last included, in [0, 1)
    config.model.init = "orthogonal"  # orthogonal (Flax's), glorot (Keras's), axon, pytorch or uniform: see model.initializers
    config.model.init_scale = 0.1  # uniform: its bound
    config.model.head_scale = 0.0  # bound of the head's initial weights, its biases 0; 0.0: as init has them
    config.model.forget_bias = 1.0  # initial bias of the forget gate
    config.model.dtype = "float32"  # of matrix-product operands: float32 or bfloat16; state and weights are float32

    config.optim = ConfigDict()
    config.optim.name = "adam"  # adam, adamw, rmsprop or sgd
    config.optim.learning_rate = 3e-3  # peak
    config.optim.schedule = "cosine"  # constant, cosine, trapezoid (constant, then linear to the end), exponential or step
    config.optim.warmup_steps = 0  # steps of linear warm-up from 0
    config.optim.final_fraction = 0.01  # cosine, trapezoid: share of the peak that it falls to
    config.optim.decay_rate = 0.5  # exponential, step: factor for every decay_steps
    config.optim.decay_steps = 1000  # exponential, step: steps; trapezoid: last steps, in which it falls
    config.optim.beta1 = 0.9  # adam, adamw: decay of the mean gradient
    config.optim.beta2 = 0.999  # adam, adamw, rmsprop: decay of the mean squared gradient
    config.optim.eps = 1e-8  # adam, adamw, rmsprop: added to the root of the mean squared gradient
    config.optim.eps_form = "outer"  # outer, or keras: Adam's before the bias correction (MXNet too), RMSprop's inside the root
    config.optim.momentum = 0.0  # sgd
    config.optim.clip_norm = 1.0  # largest global norm of the gradient; 0.0: no clipping
    config.optim.clip_value = 0.0  # largest absolute value of a gradient element; 0.0: no clipping
    config.optim.weight_decay = 0.0  # decoupled for adamw, L2 for the others
    config.optim.decay_biases = False  # weight decay of biases too, as in MXNet; False: of matrices only

    config.train = ConfigDict()
    config.train.epochs = 3.0  # length; used where steps is 0
    config.train.steps = 0  # length in steps; 0: epochs decides
    config.train.steps_per_call = 0  # that one call of the jitted function makes; 0: up to ten where they are short
    config.train.log_every = 50  # steps between rows of metrics
    config.train.eval_every = 0  # steps between evaluations; 0: once an epoch. The last step is always evaluated
    config.train.checkpoint_every = 500  # steps between checkpoints beside those of the evaluations; 0: only those
    config.train.patience = 0  # evaluations without a new best before an early stop; 0: never
    config.train.halvings = 0  # of the learning rate: times that a diverged run goes back to its last checkpoint; 0: it ends
    config.train.best = "validation"  # loss that names the best checkpoint: validation, or train (mean since the last)

    config.eval = ConfigDict()
    config.eval.framing = placeholder(str)  # as batch.framing, with its length and stride; None: that of training
    config.eval.rows = 64  # chunks, windows, documents: read side by side; speed, not result
    config.eval.length = 512  # stream: chars a window; memory, not result
    config.eval.lanes = 1  # stream: pieces read side by side; 1: exact state from the first char to the last
    config.eval.burn_in = 1000  # stream: chars that warm the state of each piece but the first, unscored

    config.sample = ConfigDict()
    config.sample.prompt = placeholder(str)  # of the sample at each evaluation; None: opening of validation, or else of train
    config.sample.length = 300  # chars, here and where scripts/sample.py is told no other; 0: no samples while training
    config.sample.temperature = 0.8  # likewise; 0.0: greedy
    config.sample.top_k = 0  # likewise; draw from the k most probable chars; 0: from all
    return config
