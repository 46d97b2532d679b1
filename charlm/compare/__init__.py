"""Runs side by side: tables, plots and a page of HTML, made from run directories alone.

This wing knows nothing of JAX, so that comparing starts at once.
"""
