"""Uses a trained model: reads it from its run directory, scores texts and draws samples.

- `model` has the class `Model`, through which notebooks and programs use the other files.
- `restore` reads a model from a run directory.
- `inputs` checks the texts, prompts and numbers that the user gives.
- `windows` cuts a text into windows of two lengths.
- `evaluate` scores a text.
- `protocol` defines how a text is read for scoring.
- `pieces` scores each character of lines, documents or a text.
- `per_char` writes these scores as a table or as an HTML page.
- `sample` draws text.
- `session` draws text after prompts that are typed one after another, and keeps the state between them.

This folder imports nothing from `charlm/training`.
"""
