"""`charlm train` of this checkout; the program is charlm/programs/train.py."""

from charlm.programs import train

if __name__ == "__main__":
    train.run()
