from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from microdiffusion.ledger import LEDGER_COLUMNS, Ledger

_counts = st.integers(-1, 1000)


@given(
    ledger=st.builds(
        Ledger, **dict.fromkeys(LEDGER_COLUMNS[:-1], _counts), announced_known=st.integers(0, 1)
    ),
    received=st.integers(0, 1000),
    unplaced=st.integers(0, 10),
)
def test_settled_ledger_always_adds_up(ledger: Ledger, received: int, unplaced: int) -> None:
    settled = ledger.settled(received=received + unplaced, unplaced=unplaced)
    assert settled.complaint() == ""
    assert settled.received == received + unplaced
    assert settled.announced >= max(ledger.announced, received)
    assert settled.settled(received=received + unplaced, unplaced=unplaced) == settled


@pytest.mark.parametrize(
    ("said", "received", "expected"),
    [
        pytest.param(
            Ledger(announced=10, announced_known=1),
            10,
            Ledger(announced=10, received=10, announced_known=1),
            id="all is there",
        ),
        pytest.param(
            Ledger(announced=10, dropped_by_sender=2, damaged=1, announced_known=1),
            6,
            Ledger(10, 6, 4, dropped_by_sender=2, damaged=1, on_the_line=1, announced_known=1),
            id="each reason",
        ),
        pytest.param(
            Ledger(announced=10, unsent=4, announced_known=1),
            9,
            Ledger(10, 9, 1, unsent=1, announced_known=1),
            id="the journal was delivered",
        ),
        pytest.param(Ledger(announced=10), 14, Ledger(14, 14), id="an old report"),
        pytest.param(
            Ledger(announced=10, dropped_by_sender=3),
            14,
            Ledger(17, 14, 3, dropped_by_sender=3),
            id="an old report of drops",
        ),
        pytest.param(Ledger(), 5, Ledger(5, 5), id="no report"),
    ],
)
def test_reports_and_counts_are_brought_together(said: Ledger, received: int, expected: Ledger) -> None:
    assert said.settled(received=received, unplaced=0) == expected


@pytest.mark.parametrize(
    ("ledger", "words"),
    [
        pytest.param(Ledger(announced=-1), "announced cannot be negative", id="negative"),
        pytest.param(
            Ledger(announced=5, received=4), r"announced \(5\) is not received \(4\)", id="announced"
        ),
        pytest.param(Ledger(announced=5, received=4, missing=1), "sum of its reasons", id="missing"),
        pytest.param(Ledger(announced=1, received=1, unplaced=2), "unplaced", id="unplaced"),
    ],
)
def test_ledger_that_does_not_add_up_says_why(ledger: Ledger, words: str) -> None:
    assert re.search(words, ledger.complaint())


@pytest.mark.parametrize(
    ("ledger", "said"),
    [
        (Ledger(announced=10, announced_known=1), "all 10 frames"),
        (
            Ledger(announced=14, dropped_by_sender=1, damaged=2, announced_known=1),
            "10 of 14 frames (1 dropped by sender, 2 damaged, 1 on the line)",
        ),
    ],
    ids=["none missing", "some missing"],
)
def test_a_ledger_says_where_the_frames_are(ledger: Ledger, said: str) -> None:
    assert ledger.settled(received=10, unplaced=0).sentence() == said
