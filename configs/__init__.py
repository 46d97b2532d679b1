"""The recipes. Each file is one config, as in `charlm train --config=NAME`.

An installed package has the recipes as charlm.recipes.
"""
