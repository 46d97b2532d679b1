"""Runs `charlm compare` from this checkout. The program is charlm/programs/compare.py."""

from charlm.programs import compare

if __name__ == "__main__":
    compare.run()
