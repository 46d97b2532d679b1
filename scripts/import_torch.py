"""Runs `charlm import_torch` from this checkout. The program is charlm/programs/import_torch.py."""

from charlm.programs import import_torch

if __name__ == "__main__":
    import_torch.run()
