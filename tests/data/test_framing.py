"""Tests of the descriptions of a framing. The other tests of framings are in test_batches.py."""

import numpy as np

from charlm.data.framing import cut_in_words


def test_the_note_about_cut_documents_gives_the_lost_percentage_and_the_length_that_loses_nothing():
    assert cut_in_words(np.array([3, 8]), 8) == ""
    assert cut_in_words(np.zeros(0, int), 8) == ""
    assert cut_in_words(np.array([4, 10, 20]), 8) == (  # 2 + 12 of 34 chars are lost
        "batch.length=8 cuts 2 of 3 documents, and 41% of the text is lost: batch.length=20 keeps all of it."
    )
    # With a length of 10, only 90 of 10,090 chars are lost, which is less than 1%.
    assert cut_in_words(np.array([10] * 999 + [100]), 8) == (
        "batch.length=8 cuts 1,000 of 1,000 documents, and 21% of the text is lost: batch.length=100 keeps all of it, and "
        "batch.length=10 keeps 99%."
    )
    assert "and 0.2% of the text is lost" in cut_in_words(np.array([8] * 999 + [24]), 8)
    assert "and less than 0.1% of the text is lost" in cut_in_words(np.array([8] * 999 + [9]), 8)
