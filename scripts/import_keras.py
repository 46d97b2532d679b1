"""`charlm import_keras` of this checkout; the program is charlm/programs/import_keras.py."""

from charlm.programs import import_keras

if __name__ == "__main__":
    import_keras.run()
