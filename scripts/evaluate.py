"""`charlm evaluate` of this checkout; the program is charlm/programs/evaluate.py."""

from charlm.programs import evaluate

if __name__ == "__main__":
    evaluate.run()
