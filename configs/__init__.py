"""The recipes, one config in each file: `charlm train --config=NAME`. An installed package has them as charlm.recipes."""
