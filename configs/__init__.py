"""The recipes. The file NAME.py defines one config, which `charlm train --config=NAME` trains.

In an installed package, the recipes are in charlm/recipes.
"""
