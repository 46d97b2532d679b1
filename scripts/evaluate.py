"""Runs `charlm evaluate` from this checkout. The program is charlm/programs/evaluate.py."""

from charlm.programs import evaluate

if __name__ == "__main__":
    evaluate.run()
