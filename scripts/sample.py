"""`charlm sample` of this checkout; the program is charlm/programs/sample.py."""

from charlm.programs import sample

if __name__ == "__main__":
    sample.run()
