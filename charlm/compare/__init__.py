"""Compares runs in tables, plots and an HTML page. All data comes from run directories.

- `reading` reads the losses, other results and learning curves of runs.
- `tables` makes the tables, as text, Markdown or CSV.
- `curves` computes the mean curve of several seeds.
- `plots` draws the plots.
- `report` writes the HTML page; `report.html` and `report.js` are its template.
- `listing` lists runs as dicts, for `charlm.runs`.

The files of this folder must not import JAX, because importing JAX is slow.
"""
