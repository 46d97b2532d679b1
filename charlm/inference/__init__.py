"""Uses a trained model: reads it from its run directory, scores texts and draws samples.

- `model` has the class `Model`, which combines the other files for notebooks and programs.
- `restore` reads a model from a run directory.
- `inputs` checks the texts, prompts and numbers of the user.
- `evaluate` scores a text.
- `protocol` defines how a text is read for scoring.
- `sample` draws text.

This wing does not depend on the training code.
"""
