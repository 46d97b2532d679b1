"""Compares runs in tables, plots and an HTML page. All data comes from run directories.

- `reading` reads the losses, other results and learning curves of runs.
- `tables` makes the tables, as text, Markdown or CSV.
- `curves` averages the learning curves of runs that differ only in their seed.
- `plots` draws the plots.
- `layout` prints a table so that it fits into a terminal.
- `marginals` computes the mean loss for each value of a config key.
- `report` writes the HTML page; `report.html` and `report.js` are its template.
- `listing` lists runs as dicts, for `charlm.runs`.

The files of this folder must not import JAX, because importing JAX is slow.
"""
