"""Runs `charlm export` from this checkout. The program is charlm/programs/export.py."""

from charlm.programs import export

if __name__ == "__main__":
    export.run()
