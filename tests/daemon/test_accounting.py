"""Senders' own figures, added up to a ledger that holds to the frame."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from microdiffusion.daemon.frame_ranges import FrameRanges
from microdiffusion.daemon.runs.accounting import MOST_KNOWN, SENDER_ROOM, SenderReports
from microdiffusion.wire.messages import RunEnd, RunProgress

RUN = "0" * 32


def settled(reports: SenderReports, received: FrameRanges) -> dict[str, int]:
    ledger = reports.ledger(received, duplicates=0, refused=0).settled(received=len(received), unplaced=0)
    assert ledger.complaint() == ""
    names = ("announced", "received", "missing", "dropped_by_sender", "unsent", "damaged", "on_the_line")
    return {name: getattr(ledger, name) for name in names if getattr(ledger, name)}


def test_one_sender_that_said_all_is_taken_at_its_word() -> None:
    reports = SenderReports()
    reports.end(RunEnd(run=RUN, announced=10, dropped=2, unsent=1, damaged=1))
    assert settled(reports, FrameRanges(range(5))) == {
        "announced": 10,
        "received": 5,
        "missing": 5,
        "dropped_by_sender": 2,
        "unsent": 1,
        "damaged": 1,
        "on_the_line": 1,
    }


def test_a_peer_that_begins_ever_anew_grows_nothing() -> None:
    reports = SenderReports()
    for first in range(3 * MOST_KNOWN):
        reports.started(first)
        reports.progress(RunProgress(run=RUN, first_seq=first, announced=1, dropped=0))
    assert len(reports._reports) == MOST_KNOWN
    for first in range(3 * MOST_KNOWN):
        reports.end(RunEnd(run=RUN, first_seq=first, announced=1, dropped=0))
    assert not reports.any_left
    assert settled(reports, FrameRanges(range(3 * MOST_KNOWN)))["received"] == 3 * MOST_KNOWN


def test_frames_of_a_sender_that_never_spoke_count_as_announced() -> None:
    assert settled(SenderReports(), FrameRanges()) == {}
    assert settled(SenderReports(), FrameRanges(range(3))) == {"announced": 3, "received": 3}
    reports = SenderReports()
    reports.end(RunEnd(run=RUN, first_seq=100, announced=4, dropped=0))
    received = FrameRanges([*range(3), *range(100, 103)])
    assert settled(reports, received) == {"announced": 7, "received": 6, "missing": 1, "on_the_line": 1}


def test_a_killed_sender_leaves_what_it_last_said_and_what_came_since() -> None:
    reports = SenderReports()
    reports.progress(RunProgress(run=RUN, announced=10, dropped=0))
    assert settled(reports, FrameRanges(range(15))) == {"announced": 15, "received": 15}
    assert settled(reports, FrameRanges(range(7))) == {
        "announced": 10,
        "received": 7,
        "missing": 3,
        "unsent": 3,
    }


def test_the_gap_of_one_sender_is_not_hidden_by_another_that_said_too_little() -> None:
    reports = SenderReports()
    reports.progress(RunProgress(run=RUN, announced=10, dropped=0))  # killed after 15
    reports.end(RunEnd(run=RUN, first_seq=100, announced=10, dropped=0))  # of which two were lost
    received = FrameRanges([*range(15), *range(100, 108)])
    assert settled(reports, received) == {"announced": 25, "received": 23, "missing": 2, "on_the_line": 2}


def test_what_one_sender_takes_for_unsent_does_not_explain_what_another_lost() -> None:
    reports = SenderReports()
    reports.end(RunEnd(run=RUN, announced=10, dropped=0, unsent=3))  # two of them came, unconfirmed
    reports.end(RunEnd(run=RUN, first_seq=100, announced=10, dropped=0))
    received = FrameRanges([*range(9), *range(100, 108)])
    assert settled(reports, received) == {
        "announced": 20,
        "received": 17,
        "missing": 3,
        "unsent": 1,
        "on_the_line": 2,
    }


def test_a_journal_that_is_delivered_later_corrects_the_last_word() -> None:
    reports = SenderReports()
    reports.end(RunEnd(run=RUN, announced=10, dropped=0, unsent=4))
    assert settled(reports, FrameRanges(range(6)))["unsent"] == 4
    reports.end(RunEnd(run=RUN, announced=10, dropped=0, unsent=0))
    assert settled(reports, FrameRanges(range(10))) == {"announced": 10, "received": 10}


def test_reports_survive_the_daemon() -> None:
    reports = SenderReports()
    reports.end(RunEnd(run=RUN, announced=10, dropped=1))
    reports.progress(RunProgress(run=RUN, first_seq=50, announced=3, dropped=0))
    again = SenderReports.of(reports.rows())
    np.testing.assert_array_equal(again.rows(), reports.rows())
    assert reports.any_left
    assert not again.any_left  # until it says so


def test_a_run_has_somebody_until_all_senders_said_their_last_word() -> None:
    reports = SenderReports()
    reports.started(0)
    reports.started(50)
    reports.end(RunEnd(run=RUN, announced=1, dropped=0))
    assert reports.any_left
    reports.end(RunEnd(run=RUN, first_seq=50, announced=1, dropped=0))
    assert not reports.any_left


def test_more_senders_than_the_file_keeps_apart_are_still_counted() -> None:
    reports = SenderReports()
    for number in range(SENDER_ROOM + 5):
        reports.end(RunEnd(run=RUN, first_seq=100 * number, announced=2, dropped=0))
    assert SenderReports.of(reports.rows()).ledger(FrameRanges(), duplicates=0, refused=0).announced == 2 * (
        SENDER_ROOM + 5
    )


frames = st.sets(st.integers(0, 30), max_size=20)


@pytest.mark.parametrize("ended", [True, False], ids=["said its last word", "killed"])
@given(first=frames, second=frames, announced=st.integers(0, 40), dropped=st.integers(0, 5))
def test_whatever_is_said_the_ledger_adds_up(
    ended: bool, first: set[int], second: set[int], announced: int, dropped: int
) -> None:
    reports = SenderReports()
    message = RunEnd if ended else RunProgress
    for at in (0, 1000):
        report = message(run=RUN, first_seq=at, announced=announced, dropped=dropped)
        reports.end(report) if isinstance(report, RunEnd) else reports.progress(report)
    received = FrameRanges(sorted(first | {1000 + seq for seq in second}))
    assert settled(reports, received).get("received", 0) == len(received)
