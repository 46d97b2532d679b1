"""Runs `charlm sample` from this checkout. The program is charlm/programs/sample.py."""

from charlm.programs import sample

if __name__ == "__main__":
    sample.run()
