"""`charlm compare` of this checkout; the program is charlm/programs/compare.py."""

from charlm.programs import compare

if __name__ == "__main__":
    compare.run()
