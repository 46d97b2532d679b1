"""Lesson 17 of Microsoft's AI-For-Beginners: headlines (titles) of AG News, LSTM of 128, one epoch.

    scripts/train.py --config=configs/ag_news_keras.py --workdir=runs/ag_news_keras
    scripts/train.py --config=configs/ag_news_keras.py:ag_news_test.csv --workdir=runs/ag_news_7600
    scripts/sample.py --workdir=runs/ag_news_7600 --prompt='Today ' --prompt='On Sunday ' --prompt='Moscow, '
        --prompt='President ' --prompt='Little red riding hood ' --temperature=0.3,0.8,1.0,1.3,1.8

Each title is a document. The input is one-hot, the optimiser is RMSprop, and the batch size is 8.

Without an argument, the titles come from TensorFlow Datasets (TFDS). Training then uses all 120,000 training titles, and
scripts/evaluate.py --split=test scores the 7,600 test titles. An argument, such as ag_news_test.csv, is a CSV file of AG News
with the columns class, title and description. Nine tenths of the titles in this file are used for training, and one tenth for
validation.

ag_news_test.csv is the test file of AG News and has 7,600 titles. With this file:
Time: 25 s on 2 CPU cores.
Result: validation 2.7782 nats/char.

Differences from the original:
- The titles are shuffled. The lesson uses the titles in the order of TFDS.
- The loss counts only characters and <eos>. With --config.batch.padding=counted --config.batch.bucket=1, the loss also counts
  padding, as in the original. Each new batch length is then compiled separately, and each compilation takes a second.
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
    config.batch.start_symbol = False
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
