"""`charlm import_torch` of this checkout; the program is charlm/programs/import_torch.py."""

from charlm.programs import import_torch

if __name__ == "__main__":
    import_torch.run()
