"""Runs `charlm import_keras` from this checkout. The program is charlm/programs/import_keras.py."""

from charlm.programs import import_keras

if __name__ == "__main__":
    import_keras.run()
