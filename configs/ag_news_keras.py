"""Lesson 17 of Microsoft's AI-For-Beginners: titles of AG News, one a row, one-hot, LSTM 128, RMSprop, batch 8, one epoch.

scripts/train.py --config=configs/ag_news_keras.py --workdir=runs/ag_news_keras
scripts/train.py --config=configs/ag_news_keras.py:ag_news_test.csv --workdir=runs/ag_news_7600
scripts/sample.py --workdir=runs/ag_news_7600 --prompt='Today ' --prompt='On Sunday ' --prompt='Moscow, '
    --prompt='President ' --prompt='Little red riding hood ' --temperature=0.3,0.8,1.0,1.3,1.8

Without an argument the 120,000 titles that TFDS fetches, all for training, with its 7,600 for `scripts/evaluate.py
--split=test`; the argument is a CSV file of AG News: class, title, description, nine tenths for training. The 7,600 titles of
the test file take 25 s on 2 CPU cores, validation 2.7782 nats. The titles are shuffled, where the lesson takes them as TFDS
stores them. The loss is of characters and <eos> alone; with --config.batch.padding=counted --config.batch.bucket=1 padding
counts too, as it does in the original, and each length of a batch is compiled by itself, a second each to begin with.
"""

from configs import base


def get_config(arg: str | None = None):
    config = base.get_config()
    config.corpus.tfds = None if arg else "ag_news_subset:title"
    config.corpus.path = arg
    config.corpus.documents = "csv:1" if arg else ""
    config.corpus.split = (0.9, 0.1) if arg else (1.0,)
    config.vocab.source = "corpus"
    config.batch.framing = "documents"
    config.batch.size = 8
    config.batch.length = 256
    config.model.input = "onehot"
    config.model.layers = 1
    config.model.hidden = 128
    config.model.init = "glorot"
    config.optim.name = "rmsprop"
    config.optim.learning_rate = 1e-3
    config.optim.schedule = "constant"
    config.optim.beta2 = 0.9
    config.optim.eps = 1e-7
    config.optim.eps_form = "keras"
    config.optim.clip_norm = 0.0
    config.train.epochs = 1.0
    config.train.best = "validation" if arg else "train"
    config.sample.prompt = "Today "
    config.sample.length = 100
    config.sample.temperature = 0.0
    return config
