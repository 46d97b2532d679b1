"""Runs `charlm sweep` from this checkout. The program is charlm/programs/sweep.py."""

from charlm.programs import sweep

if __name__ == "__main__":
    sweep.run()
