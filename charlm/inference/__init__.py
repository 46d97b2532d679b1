"""Uses a trained model: reads it from its run directory, scores texts and draws samples.

- `model` has the class `Model`, through which notebooks and programs use the other files.
- `restore` reads a model from a run directory.
- `inputs` checks the texts, prompts and numbers that the user gives.
- `windows` cuts a text into long and short windows.
- `evaluate` scores a text.
- `dynamic` scores a text while the weights learn from it, and `dynamic_run` does so for a run, with statistics and a grid.
- `looking` looks inside a model while it reads a text, and writes a page; `looking_plots` draws plots. `activations` records
  the states and gates of the layers. `findings` finds the units that tell a property of the text.
- `ensemble` scores a text with several models together.
- `protocol` defines how a text is read for scoring.
- `pieces` scores each character of separate pieces of text: lines, documents or one whole text.
- `per_char` writes these scores as a table or as an HTML page.
- `sample` draws text.
- `session` draws text after each prompt that a user types, and keeps the state of the model between the prompts.

This folder imports nothing from `charlm/training`.
"""
