"""A conversation with a model: draws text after prompts that a user types one after another."""

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from charlm.data.framing import Framing
from charlm.errors import UserError
from charlm.inference.model import SHORT, Model

CONTINUE = "/continue"
BROKEN = "\ufffd"  # replaces bytes that are not a character in UTF-8


class Session:
    """Draws one text after another, and keeps the state of the model after each text.

    All texts are drawn by the same compiled program. To continue a text, the session does not read the text again from its
    beginning: it keeps the state after most of the text, and reads only the rest again.
    """

    def __init__(
        self,
        model: Model,
        check: Callable[[str], str],
        length: int | None,
        temperature: float | None,
        seed: int,
        *,
        top_k: int | None,
        top_p: float,
        window: int | None,
        stop: Sequence[str],
    ):
        """The arguments after `check` are arguments of `Model.draw`.

        Args:
          check: takes a typed prompt, and returns the prompt as the model reads it. Raises a UserError if the prompt is wrong.
        """
        self._model, self._check, self._stop = model, check, stop
        self._length, self._temperature, self._seed = length, temperature, seed
        self._top_k, self._top_p = top_k, top_p
        self._window = Framing.of(model.config).window if window is None else window
        self._turn = -1  # counts the texts, so that each text is drawn with its own noise
        self._rest = ""  # the end of the last text, which the model has not read into the state yet
        self._carry: Any = None  # the state after the last text without `_rest`; None: the zero state
        self._stopped_by = ""
        self._at_end = False  # whether the last text ended with the end of a document

    def answer(self, line: str) -> Iterator[str]:
        """The text of one turn, piece by piece: what the model reads now, followed by what it draws.

        A line is a prompt, which the model reads from the zero state. `/continue` continues the last text, and `/continue TEXT`
        adds TEXT to the last text first. If a stop text ended the last text, the stop text is added before TEXT.

        The two characters `\\n` stand for a line break, because a typed line can't contain a line break. If the vocabulary has
        a backslash, the two characters are not changed.

        Raises:
          UserError: the prompt is wrong, or there is no text to continue.
        """
        command, _, text = line.partition(" ")
        is_continued = command == CONTINUE
        text = text if is_continued else line
        if self._model.vocab.missing("\\"):
            text = text.replace("\\n", "\n")
        text = self._check(text) if text or not is_continued else ""
        if is_continued:
            if self._at_end:
                raise UserError(f"{CONTINUE}: the document has ended; type a new prompt.")
            if not self._rest:
                raise UserError(f"{CONTINUE}: there is no text to continue; type a prompt first.")
            text = self._stopped_by + text
        else:
            self._forget()
        self._turn += 1
        return self._pieces(text)

    def _pieces(self, text: str) -> Iterator[str]:
        before, self._rest, self._stopped_by = self._rest + text, self._rest + text, ""
        if text:
            yield text
        ended: dict[int, str | None] = {}
        drawn = self._model.draw(
            before,
            self._length,
            self._temperature,
            self._seed,
            num=1,
            top_k=self._top_k,
            top_p=self._top_p,
            window=self._window,
            cell=self._turn,
            stop=self._stop,
            ended=ended,
            carry=self._carry,
        )
        broken = ""
        for (piece,) in drawn:
            # With bytes, a text may end in the middle of a character. These last bytes are left out, so that `/continue` draws
            # the whole character.
            shown = (broken + piece).rstrip(BROKEN if self._model.vocab.of_bytes else "")
            broken = (broken + piece)[len(shown) :]
            self._rest += shown  # before the yield: after Ctrl-C, the session continues from the text that was printed
            yield shown
        self._at_end = 0 in ended and ended[0] is None
        self._stopped_by = ended.get(0) or ""
        self._advance()

    def _advance(self) -> None:
        """Reads most of the text into the state. At least one character is left in `_rest`, because a draw needs a prompt.

        The first part of a text is read after the start symbol, if the model has one.
        """
        if self._window:
            self._rest = self._rest[-self._window :]
            return
        encode = self._model.encoded_from_start if self._carry is None else self._model.vocab.encode
        lengths = map(self._model.vocab.length_of, self._rest[:-1])  # with bytes, a character may be several ids
        ends = enumerate(itertools.accumulate(lengths, initial=len(encode(""))))
        read = max((count for count, ids in ends if ids % SHORT == 0), default=0)
        if read:
            self._carry = self._model.carry_after(encode(self._rest[:read]), self._carry)
            self._rest = self._rest[read:]

    def _forget(self) -> None:
        self._rest, self._stopped_by, self._at_end, self._carry = "", "", False, None
