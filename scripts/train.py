"""Runs `charlm train` from this checkout. The program is charlm/programs/train.py."""

from charlm.programs import train

if __name__ == "__main__":
    train.run()
