"""The journal: what was written whole is read back whatever happened next, and its bounds hold."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.wire_support import (
    RUN,
    Receiver,
    make_frame,
    make_header,
    put_all,
    receiving,
    sending,
    wait_until,
)

from microdiffusion import wire
from microdiffusion.daemon.cli.dispatch import main
from microdiffusion.errors import AddressError, DiskError, GeometryError, InputFileError
from microdiffusion.sender import delivery as delivery_module
from microdiffusion.sender import journal as journal_module
from microdiffusion.sender import spill as spill_module
from microdiffusion.sender.delivery import Delivered
from microdiffusion.sender.journal import Journal, JournalFull, Location, in_use, left_over

FRAME_BYTES = 16 * 24 * 2
NO_LIMIT = 1 << 30


def create(folder: Path, limit_bytes: int = NO_LIMIT) -> Journal:
    return Journal(folder, make_header(), 0, limit_bytes=limit_bytes)


def append(journal: Journal, seq: int) -> Location:
    header, body, _ = wire.encode_frame(RUN, make_frame(seq))
    return journal.append(seq, bytes(header), body, announced=seq + 1, dropped=seq // 10)


def deliver(folder: Path, address: str, **options: Any) -> list[Delivered]:
    return list(delivery_module.deliver(folder, address, **options))


def reopen(path: Path) -> Journal:
    journal = Journal.reopen(path)
    assert journal is not None
    return journal


def seqs_in(journal: Journal) -> list[int]:
    return [wire.decode(journal.read(location)).frame.info.seq for location in journal.records.values()]


def test_what_was_appended_is_read_back(tmp_path: Path) -> None:
    journal = create(tmp_path)
    locations = [append(journal, seq) for seq in (3, 1, 2)]
    frame = wire.decode(journal.read(locations[1])).frame
    assert (frame.pixels == make_frame(1).pixels).all()
    assert frame.info == make_frame(1).info
    journal.note(announced=30, dropped=4)
    journal.close()
    again = reopen(journal.path)
    assert seqs_in(again) == [1, 2, 3]
    assert (again.header, again.first_seq) == (make_header(), 0)
    assert (again.announced, again.dropped) == (30, 4)
    again.close()


@settings(max_examples=60)
@given(st.data())
def test_a_journal_that_was_cut_or_damaged_anywhere_gives_all_the_rest(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    journal = create(tmp_path_factory.mktemp("journal"))
    locations = [append(journal, seq) for seq in range(4)]
    journal.close()
    [part] = journal.path.glob("*.part")
    whole = part.read_bytes()
    at = data.draw(st.integers(0, len(whole) - 1))
    cut = data.draw(st.booleans())
    damaged = whole[:at] if cut else whole[:at] + bytes([whole[at] ^ 4]) + whole[at + 1 :]
    part.write_bytes(damaged)
    again = reopen(journal.path)
    sound = []
    for seq, location in again.records.items():
        try:
            sound.append(wire.decode(again.read(location)).frame.info.seq)
        except DiskError:
            assert not cut
            continue
        assert sound[-1] == seq
    ends = [location.offset + location.header_bytes + location.body_bytes for location in locations]
    begins = [0, *ends[:-1]]
    others = [seq for seq in range(4) if ends[seq] <= at or (begins[seq] > at and not cut)]
    assert set(others) <= set(sound)
    assert len(sound) == len(set(sound))
    again.close()


def test_a_part_goes_when_nothing_in_it_is_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal_module, "PART_BYTES", 3 * (FRAME_BYTES + 600))
    journal = create(tmp_path)
    locations = [append(journal, seq) for seq in range(8)]
    assert len(list(journal.path.glob("*.part"))) == 3
    sizes = []
    for location in locations:
        journal.release(location)
        sizes.append(journal.size)
    assert sizes[-1] == 0
    assert sorted(sizes, reverse=True) == sizes
    assert list(journal.path.glob("*.part")) == []
    append(journal, 8)
    journal.delete()
    assert list(tmp_path.iterdir()) == []


def test_the_limit_counts_what_other_journals_take(tmp_path: Path) -> None:
    first = create(tmp_path)
    append(first, 0)
    second = create(tmp_path, limit_bytes=first.size + FRAME_BYTES)
    with pytest.raises(JournalFull):
        append(second, 1)
    first.close()
    second.close()


def test_no_more_frames_than_agreed_go_into_a_journal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journal_module, "MAX_RECORDS", 2)
    journal = create(tmp_path)
    locations = [append(journal, seq) for seq in range(2)]
    with pytest.raises(JournalFull):
        append(journal, 2)
    journal.release(locations[0])
    append(journal, 2)
    journal.close()


def test_a_write_that_fails_halfway_leaves_nothing_of_its_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = create(tmp_path)
    append(journal, 0)
    write = journal_module._write
    calls = iter([True, False])

    def fail_second(file: Any, data: Any) -> None:
        if next(calls, True):
            write(file, data)
        else:
            write(file, memoryview(data).cast("B")[:100])
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(journal_module, "_write", fail_second)
    with pytest.raises(OSError, match="No space"):
        append(journal, 1)
    append(journal, 2)
    journal.close()
    again = reopen(journal.path)
    assert seqs_in(again) == [0, 2]
    again.close()


def test_a_journal_in_use_is_seen_and_passed_over(tmp_path: Path) -> None:
    assert left_over(tmp_path / "nowhere") == []
    journal = create(tmp_path)
    assert left_over(tmp_path) == []  # it is made with its first frame
    append(journal, 0)
    assert left_over(tmp_path) == left_over(tmp_path, RUN) == [journal.path]
    assert left_over(tmp_path, "f" * 32) == []
    assert in_use(tmp_path, RUN)
    assert Journal.reopen(journal.path) is None
    assert deliver(tmp_path, "tcp://127.0.0.1:9") == []
    journal.close()
    assert not in_use(tmp_path)


@pytest.mark.parametrize("text", [b"", b"{}", b"\xff", b'{"journal": 2}'])
def test_a_journal_without_its_start_is_refused_and_told(tmp_path: Path, text: bytes) -> None:
    journal = create(tmp_path)
    append(journal, 0)
    journal.close()
    (journal.path / "start").write_bytes(text)
    with pytest.raises(InputFileError, match="is no journal of this version"):
        Journal.reopen(journal.path)
    [told] = deliver(tmp_path, "tcp://127.0.0.1:9")
    assert not told.done
    assert "no journal" in str(told)


def seqs_on_disk(folder: Path) -> set[int]:
    """Return the numbers of the frames in all journals of a folder, whoever writes them."""
    parts = folder.glob("*/*.part")
    return {record[0] for part in parts for record in journal_module._records(part, 1, part.stat().st_size)}


def put_slowly(sender: Any, seqs: range) -> list[bool]:
    """Put frames as a camera would, so that the journal's thread can keep up."""
    taken = []
    for seq in seqs:
        wait_until(lambda: sender.stats.memory_bytes < 16 * FRAME_BYTES)
        taken += put_all(sender, range(seq, seq + 1))
    return taken


def journaling(folder: Path, **options: Any) -> dict[str, Any]:
    return {"buffer_bytes": 20 * FRAME_BYTES, "journal": folder, "journal_bytes": NO_LIMIT, **options}


def test_a_daemon_that_comes_late_gets_what_did_not_fit_into_memory(tmp_path: Path) -> None:
    with receiving() as receiver:
        address = receiver.address
    with sending(address, **journaling(tmp_path)) as sender:
        assert all(put_slowly(sender, range(200)))
        stats = sender.stats
        assert stats.memory_bytes <= 20 * FRAME_BYTES
        assert stats.journaled >= 180
        with receiving(address) as receiver:
            threading.Thread(target=put_slowly, args=(sender, range(200, 300))).start()
            wait_until(lambda: sender.stats.put == 300)
            stats = sender.finish()
            assert (stats.acknowledged, stats.dropped, stats.unsent, stats.ended) == (300, 0, 0, True)
            assert receiver.seqs == list(range(300))
            receiver.assert_intact()
    assert list(tmp_path.iterdir()) == []


def test_while_the_daemon_keeps_up_the_disk_is_left_alone(tmp_path: Path) -> None:
    folder = tmp_path / "journal"
    with receiving() as receiver, sending(receiver.address, **journaling(folder)) as sender:
        wait_until(lambda: sender.stats.connected)
        for seq in range(100):
            wait_until(lambda: sender.stats.memory_bytes < 8 * FRAME_BYTES)
            assert put_all(sender, range(seq, seq + 1)) == [True]
        assert sender.finish().ended
    assert not folder.exists()


def test_what_is_left_at_the_end_is_delivered_later_with_its_numbers(tmp_path: Path) -> None:
    with receiving() as receiver:
        put_before = 5
        with sending(receiver.address, **journaling(tmp_path), first_seq=1000) as sender:
            put_all(sender, range(1000, 1000 + put_before))
            wait_until(lambda: sender.stats.acknowledged == put_before)
            receiver.stop()
            put_slowly(sender, range(1005, 1040))
            stats = sender.finish(timeout_s=0.1)
            assert (stats.unsent, stats.ended) == (35, False)
            assert sender.finish() == stats
        with receiving(receiver.address, receiver.received) as second:
            [told] = deliver(tmp_path, second.address)
            assert (told.done, told.acknowledged, told.frames, told.run_id) == (True, 35, 35, RUN)
            assert second.seqs == list(range(1005, 1040))
            second.assert_intact()
            [end] = second.ends
            assert (end.first_seq, end.announced, end.dropped, end.unsent) == (1000, 40, 0, 0)
            assert deliver(tmp_path, second.address) == []
    assert list(tmp_path.iterdir()) == []


def test_the_end_says_how_many_frames_wait_in_the_journal(tmp_path: Path) -> None:
    with receiving() as receiver:
        receiver.window_bytes = 4 * FRAME_BYTES
        receiver.hold()
        with sending(receiver.address, **journaling(tmp_path)) as sender:
            put_slowly(sender, range(50))
            wait_until(lambda: len(receiver.frames) == 4)
            sender.finish(timeout_s=0.1)
            wait_until(lambda: bool(receiver.ends))
        assert (receiver.ends[0].announced, receiver.ends[0].dropped, receiver.ends[0].unsent) == (50, 0, 50)
        receiver.release()


def test_a_daemon_that_declines_leaves_the_journal_and_says_why(tmp_path: Path) -> None:
    with receiving() as receiver:
        address = receiver.address
    with sending(address, **journaling(tmp_path)) as sender:
        put_slowly(sender, range(5))
        sender.finish(timeout_s=0.1)
    with receiving(address) as receiver:
        receiver.declines = GeometryError("The slab is longer than the volume.")
        [told] = deliver(tmp_path, address)
        assert not told.done
        assert "slab is longer" in str(told)
        receiver.declines = None
        assert deliver(tmp_path, address)[0].done


def test_delivering_to_nobody_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(delivery_module, "CONNECT_S", 0.2)
    journal = create(tmp_path)
    append(journal, 0)
    journal.close()
    with pytest.raises(AddressError, match="mdd serve"):
        deliver(tmp_path, "tcp://127.0.0.1:9")
    assert not in_use(tmp_path)
    assert deliver(tmp_path, "tcp://127.0.0.1:9", stop=lambda: True) == []


def test_damaged_frames_in_a_journal_are_counted_and_the_others_delivered(tmp_path: Path) -> None:
    journal = create(tmp_path)
    locations = [append(journal, seq) for seq in range(5)]
    journal.close()
    [part] = journal.path.glob("*.part")
    data = bytearray(part.read_bytes())
    data[locations[2].offset + locations[2].header_bytes + 7] ^= 1
    part.write_bytes(data)
    with receiving() as receiver:
        [told] = deliver(tmp_path, receiver.address)
        assert (told.done, told.acknowledged, told.damaged) == (True, 4, 1)
        assert receiver.seqs == [0, 1, 3, 4]
        assert receiver.ends[0].damaged == 1


@pytest.mark.parametrize("for_good", [False, True], ids=["for a moment", "for good"])
def test_a_disk_that_does_not_give_a_frame_is_asked_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, for_good: bool
) -> None:
    journal = create(tmp_path)
    for seq in range(5):
        append(journal, seq)
    journal.close()
    failures = 0
    read = journal_module._read

    def fail(path: Path, offset: int, nbytes: int) -> bytes:
        nonlocal failures
        if offset > 2000 and (failures < 3 or for_good):
            failures += 1
            raise OSError(errno.EMFILE, "too many open files")
        return read(path, offset, nbytes)

    monkeypatch.setattr(journal_module, "_read", fail)
    monkeypatch.setattr(spill_module, "RETRY_S", 0.01)
    monkeypatch.setattr(spill_module, "TICK_S", 0.01)
    with receiving() as receiver:
        [told] = deliver(tmp_path, receiver.address)
    assert told.done
    assert told.acknowledged == len(receiver.seqs) == (5 - told.damaged)
    assert (told.damaged > 0) == for_good
    assert failures >= 3


def test_a_full_journal_makes_the_sender_drop_count_and_say_so(tmp_path: Path) -> None:
    with receiving() as receiver:
        address = receiver.address
    with sending(address, **journaling(tmp_path, journal_bytes=30 * FRAME_BYTES)) as sender:
        for seq in range(100):
            put_all(sender, range(seq, seq + 1))
            time.sleep(0.002)
        wait_until(lambda: "wire.journal_gb" in sender.trouble)
        stats = sender.stats
        assert stats.dropped > 40
        with receiving(address) as receiver:
            stats = sender.finish()
            assert stats.ended
            assert stats.put + stats.dropped == receiver.ends[0].announced == 100
            assert len(receiver.frames) == stats.put == stats.acknowledged
            assert receiver.ends[0].dropped == stats.dropped
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_was_full_is_used_again_when_it_is_freed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spill_module, "RETRY_S", 0.05)
    full = threading.Event()
    full.set()
    write = journal_module._write

    def write_if_there_is_room(file: Any, data: Any) -> None:
        if full.is_set():
            raise OSError(28, "No space left on device")
        write(file, data)

    monkeypatch.setattr(journal_module, "_write", write_if_there_is_room)
    with receiving() as receiver:
        address = receiver.address
    with sending(address, **journaling(tmp_path)) as sender:
        taken = put_all(sender, range(30))
        assert sum(taken) == 20
        wait_until(lambda: "No space left" in sender.trouble)
        full.clear()
        wait_until(lambda: sender.stats.journaled > 0)
        assert all(put_slowly(sender, range(30, 60)))
        with receiving(address) as receiver:
            assert sender.finish().ended
            assert receiver.seqs == [*range(20), *range(30, 60)]
            assert (receiver.ends[0].announced, receiver.ends[0].dropped) == (60, 10)


def test_a_folder_that_cannot_be_written_to_is_said_and_costs_only_what_does_not_fit(tmp_path: Path) -> None:
    in_the_way = tmp_path / "file"
    in_the_way.write_text("no folder")
    with receiving() as receiver:
        address = receiver.address
    with sending(address, **journaling(in_the_way)) as sender:
        assert sum(put_all(sender, range(30))) == 20
        wait_until(lambda: "cannot be written" in sender.trouble)
        with receiving(address) as receiver:
            assert sender.finish().ended
            assert receiver.seqs == list(range(20))


def test_a_daemon_that_dies_while_frames_come_back_from_the_journal_costs_none(tmp_path: Path) -> None:
    receiver = Receiver()
    address = receiver.address
    receiver.stop()
    with sending(address, **journaling(tmp_path)) as sender:
        put_slowly(sender, range(300))
        seqs: list[int] = []
        for _ in range(4):
            receiver = Receiver(address, receiver.received)
            before = len(receiver.received)
            wait_until(lambda r=receiver, n=before: len(r.received) > n + 20 or len(r.received) == 300)
            receiver.stop()
            seqs += receiver.seqs
        receiver = Receiver(address, receiver.received)
        assert sender.finish().ended
        receiver.stop()
        assert sorted(seqs + receiver.seqs) == list(range(300))


def test_a_camera_that_outpaces_the_disk_does_not_keep_the_first_frames_from_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those that go out next stay in memory; a copy of them must be safe, whoever is killed."""
    write = journal_module._write

    def slowly(file: Any, data: Any) -> None:
        time.sleep(0.01)
        write(file, data)

    monkeypatch.setattr(journal_module, "_write", slowly)

    with sending("tcp://127.0.0.1:9", **journaling(tmp_path)) as sender:
        seq, deadline = 0, time.monotonic() + 30
        while not set(range(4)) <= seqs_on_disk(tmp_path):
            assert time.monotonic() < deadline, sorted(seqs_on_disk(tmp_path))[:9]
            for _ in range(20):
                sender.put(make_frame(seq).info, make_frame(seq).pixels)
                seq += 1
            time.sleep(0.01)
        sender.finish(timeout_s=0.0)


KILLED = """
import sys, time
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from support.wire_support import make_frame, make_header
from microdiffusion.sender import Sender

if __name__ == "__main__":
    folder = Path(sys.argv[3])
    sender = Sender(sys.argv[2], make_header(), buffer_bytes=20 * 768, journal=folder, journal_bytes=1 << 30)
    sender.start()
    for seq in range(100_000):
        frame = make_frame(seq)
        sender.put(frame.info, frame.pixels)
        if seq % 50 == 0:
            print(seq, flush=True)
        time.sleep(0.001)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="no SIGKILL there")
def test_what_a_killed_sender_had_in_its_journal_is_delivered(tmp_path: Path) -> None:
    with receiving() as receiver:
        address = receiver.address
    tests = str(Path(__file__).parents[1])
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED, tests, address, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        for line in process.stdout:
            if int(line) >= 300:
                break
        wait_until(lambda: set(range(300)) <= seqs_on_disk(tmp_path))
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()
    assert not in_use(tmp_path)
    with receiving(address) as receiver:
        [told] = deliver(tmp_path, address)
        assert told.done
        assert told.acknowledged >= 300
        seqs = receiver.seqs
        assert seqs == list(range(seqs[-1] + 1))
        receiver.assert_intact()
        assert receiver.ends[0].announced >= len(seqs)
    assert list(tmp_path.iterdir()) == []


def test_the_command_lists_and_delivers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    journal = create(tmp_path)
    for seq in range(3):
        append(journal, seq)
    assert main(["deliver", str(tmp_path), "--list"]) == 0
    assert "in use" in capsys.readouterr().out
    journal.close()
    assert main(["deliver", str(tmp_path), "--list"]) == 0
    assert "3 frames" in capsys.readouterr().out
    with receiving() as receiver:
        assert main(["deliver", str(tmp_path), "--address", receiver.address]) == 0
        assert "3 of 3 frames delivered" in capsys.readouterr().out
        assert receiver.seqs == [0, 1, 2]
        assert main(["deliver", str(tmp_path), "--address", receiver.address]) == 0
        assert "nothing is left" in capsys.readouterr().out
    assert main(["deliver", str(tmp_path / "nowhere")]) == 2
