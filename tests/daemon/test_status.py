"""The status board, its snapshots, and their way to a subscriber."""

import math
import os
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
import zmq
from hypothesis import given, settings
from hypothesis import strategies as st

from microdiffusion.daemon.status import (
    HEADLINE,
    FrameCounts,
    QueueDepth,
    RunStatus,
    StatusBoard,
    StatusPublisher,
    StatusSnapshot,
    subscribe,
)
from microdiffusion.daemon.status.previews import (
    AGAIN_S,
    EDGE,
    LatestPreviews,
    Preview,
    make_preview,
    resize_max,
)
from microdiffusion.daemon.system import disk_free_bytes, resident_mb
from microdiffusion.errors import AddressError, UserError


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def board(clock):
    return StatusBoard(clock=clock)


def test_a_new_board_is_starting_and_empty(board):
    snapshot = board.snapshot()
    assert (snapshot.state, snapshot.elapsed_s, snapshot.latencies) == ("starting", 0.0, {})


def test_elapsed_time_is_counted_from_the_start(board, clock):
    clock.now += 83.5
    assert board.snapshot().elapsed_s == 83.5


def test_frame_rate_spans_the_bursts_of_sweeps(board, clock):
    for burst in range(10):  # nine frames every two seconds
        board.put(frames=FrameCounts(received=9 * burst))
        clock.now += 2.0
    assert board.snapshot().frame_rate_hz == pytest.approx(4.5, rel=0.25)


def test_frame_rate_falls_to_zero_when_frames_stop(board, clock):
    board.put(frames=FrameCounts(received=0))
    clock.now += 1.0
    board.put(frames=FrameCounts(received=100))
    assert board.snapshot().frame_rate_hz == pytest.approx(100.0)
    clock.now += 60.0
    assert board.snapshot().frame_rate_hz == 0.0


def test_latencies_are_percentiles_of_the_last_measurements(board):
    for value in np.linspace(0.0, 1.0, 101):
        board.add_latency(HEADLINE, value)
    board.add_latency(HEADLINE, math.nan)
    latency = board.snapshot().latencies[HEADLINE]
    assert (latency.p50, latency.p95) == pytest.approx((0.5, 0.95))


def test_old_latencies_are_forgotten(board):
    for _ in range(1000):
        board.add_latency("inr", 9.0)
    for _ in range(256):
        board.add_latency("inr", 1.0)
    assert board.snapshot().latencies["inr"].p95 == 1.0


def test_the_held_out_error_stays_until_the_next_one(board):
    board.set_quality(4, "mdd", 1.0, 1.1, {"mdd": 1.1, "linear": 1.4})
    board.set_quality(5, "tikhonov", math.nan)
    quality = board.snapshot().quality
    assert (quality.served, quality.residual) == ("tikhonov", None)
    assert (quality.held_out_error, quality.held_out_sweep, quality.candidates["linear"]) == (1.1, 4, 1.4)


def test_outcomes_are_counted(board):
    for outcome in ("written", "written", "lost", "skipped", "failed"):
        board.add_volume(outcome)
    volumes = board.snapshot().volumes
    assert (volumes.written, volumes.lost, volumes.skipped, volumes.failed) == (2, 1, 1, 1)


def test_only_the_last_notes_are_kept_with_their_time(board, clock):
    for number in range(20):
        clock.now += 1
        board.note(f"note {number}", "warning")
    notes = board.snapshot().notes
    assert (len(notes), notes[-1].text, notes[-1].elapsed_s) == (8, "note 19", 20.0)


def test_the_board_may_be_used_from_many_threads_at_once(board):
    def work():
        for number in range(300):
            board.add_volume("written")
            board.add_latency("inr", 0.1 * number)
            board.put(queues={f"queue {number % 5}": QueueDepth(bytes=number)})
            board.snapshot()

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert board.snapshot().volumes.written == 1200


def test_memory_and_disk_are_measured(board, tmp_path):
    board.put(run=RunStatus(file=str(tmp_path / "not yet" / "run.h5")))
    snapshot = board.snapshot()
    assert 5 < snapshot.memory_mb["daemon"] < 100_000
    assert snapshot.disk_free_bytes == pytest.approx(disk_free_bytes(tmp_path), rel=0.1)


@pytest.mark.skipif(sys.platform == "darwin", reason="macOS tells of the own process only")
def test_memory_of_another_process_is_measured_until_it_ends():
    code = "print(flush=True); input()"
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", code], **pipes) as child:
        child.stdout.readline()
        assert resident_mb(child.pid) > 1
        child.communicate(b"\n", timeout=30)
    assert resident_mb(child.pid) is None
    assert resident_mb() == pytest.approx(resident_mb(os.getpid()), rel=0.2)


def test_a_snapshot_survives_json_and_unknown_fields(board):
    board.set_preview(make_preview(np.random.default_rng(0).random((6, 32, 24), np.float32), (2, 1, 1)))
    board.set_quality(0, "mdd", math.inf, math.nan)
    snapshot = board.snapshot()
    text = snapshot.model_dump_json()
    assert "NaN" not in text
    assert StatusSnapshot.model_validate_json(text) == snapshot
    assert StatusSnapshot.model_validate_json(text[:-1] + ', "of_a_newer_daemon": 1}') == snapshot


@settings(max_examples=50)
@given(
    shape=st.tuples(st.integers(1, 60), st.integers(1, 200), st.integers(1, 200)),
    voxel=st.tuples(*[st.sampled_from([0.1, 0.5, 1.0, 2.0, 7.0])] * 3),
)
def test_a_preview_fits_its_edge_and_keeps_the_proportions(shape, voxel):
    preview = make_preview(np.zeros(shape, np.uint16), voxel)
    assert max(preview.size) <= EDGE
    for pixels, count, edge in zip(preview.size, shape, voxel, strict=True):
        assert abs(pixels - count * edge / preview.pixel_um) <= 1
    assert [image.shape for image in preview.images] == [
        (preview.size[1], preview.size[2]),
        (preview.size[0], preview.size[2]),
        (preview.size[1], preview.size[0]),
    ]


def test_a_preview_shows_the_brightest_where_it_is():
    volume = np.full((24, 64, 96), 100, np.uint16)
    volume[6, 10:14, 70:74] = 1000
    xy, xz, yz = make_preview(volume, (2, 1, 1)).images
    assert np.unravel_index(xy.argmax(), xy.shape) == (10, 70)
    assert np.unravel_index(xz.argmax(), xz.shape) == (12, 70)  # a slice is two pixels high
    assert np.unravel_index(yz.argmax(), yz.shape) == (10, 12)
    assert (xy.min(), xy.max()) == (0, 255)


def test_a_preview_of_values_that_are_not_finite_is_drawn():
    volume = np.ones((4, 32, 32), np.float32)
    volume[0, 0, 0], volume[1, 5, 5] = np.nan, np.inf
    assert make_preview(volume, (1, 1, 1)).images[0].shape == (32, 32)


def test_a_preview_of_another_size_than_it_says_is_refused():
    good = make_preview(np.zeros((4, 8, 8)), (1, 1, 1)).model_dump(mode="json")
    with pytest.raises(ValueError, match="xy image should hold 72 bytes, not 64"):
        Preview.model_validate({**good, "size": (4, 9, 8)})


def test_shrinking_keeps_a_line_one_pixel_wide():
    image = np.zeros((128, 128), np.uint8)
    image[:, 77] = 200
    assert resize_max(image, (40, 30)).max(axis=1).tolist() == [200] * 40


@pytest.fixture
def published(board):
    """Publish the board's snapshots until the test ends; yields the address and the publisher's stop."""
    stop = threading.Event()
    address = []
    bound = threading.Event()

    def publish():
        with StatusPublisher("tcp://127.0.0.1:*") as publisher:
            address.append(publisher.address)
            bound.set()
            while not stop.wait(0.02):
                publisher.publish(board.snapshot())
            publisher.publish(board.snapshot())

    thread = threading.Thread(target=publish)
    thread.start()
    assert bound.wait(10)
    yield address[0], stop
    stop.set()
    thread.join(10)


def test_a_subscriber_may_join_late_and_sees_the_end(board, published):
    address, stop = published
    board.put(state="running")
    snapshots = subscribe(address, 10.0)
    assert next(snapshots).state == "running"
    board.put(state="closed")
    stop.set()
    assert list(snapshots)[-1].state == "closed"


def test_a_slow_subscriber_gets_the_newest_snapshot(board, published, clock):
    address, _ = published
    snapshots = subscribe(address, 10.0)
    next(snapshots)
    clock.now += 500
    time.sleep(0.3)
    assert next(snapshots).elapsed_s == 500


def test_a_daemon_that_falls_silent_is_reported(published):
    address, stop = published
    snapshots = subscribe(address, 0.5)
    next(snapshots)
    stop.set()
    with pytest.raises(UserError, match=r"said nothing for 0\.5 s"):
        list(snapshots)


def test_nobody_there_is_reported_with_what_to_do():
    with pytest.raises(UserError, match=r"No daemon answered at tcp://127.0.0.1:9 within 0.1 s: start one"):
        next(subscribe("tcp://127.0.0.1:9", 0.1))


@pytest.mark.parametrize(
    "parts", [[b"status"], [b"status", b"{"], [b"status", b'{"state": 3}'], [b"status", b"{}", b""]]
)
def test_a_stranger_s_messages_are_not_taken_for_a_daemon(parts):
    with zmq.Context.instance().socket(zmq.PUB) as stranger:
        stranger.linger = 0
        port = stranger.bind_to_random_port("tcp://127.0.0.1")
        done = threading.Event()

        def chatter():
            while not done.wait(0.01):
                stranger.send_multipart(parts)

        thread = threading.Thread(target=chatter)
        thread.start()
        try:
            with pytest.raises(UserError, match="No daemon answered"):
                next(subscribe(f"tcp://127.0.0.1:{port}", 0.4))
        finally:
            done.set()
            thread.join(10)


def test_a_malformed_address_is_refused():
    with pytest.raises(AddressError, match="Expected an address such as"):
        next(subscribe("nonsense", 0.1))


def test_a_port_in_use_is_refused_with_what_to_do():
    with (
        StatusPublisher("tcp://127.0.0.1:*") as first,
        pytest.raises(AddressError, match=r"cannot be used \(Address .* in use\): close the other daemon"),
    ):
        StatusPublisher(first.address)


def test_a_figure_that_the_snapshot_does_not_have_is_refused(board):
    with pytest.raises(TypeError, match="no field exposure_of_the_moon"):
        board.put(exposure_of_the_moon=1)


def test_queues_of_several_producers_are_kept_together(board):
    board.put(queues={"engine": QueueDepth(bytes=1)})
    board.put(queues={"recorder": QueueDepth(bytes=2)})
    assert {name: depth.bytes for name, depth in board.snapshot().queues.items()} == {
        "engine": 1,
        "recorder": 2,
    }


def test_previews_of_sessions_take_turns_and_come_again_for_who_joins_late() -> None:
    picture = make_preview(np.zeros((4, 8, 8)), (1, 1, 1))
    shelf = LatestPreviews()
    assert shelf.next(0.0) == ("", None)
    for name in ("b", "a"):
        shelf.put(name, picture)
    assert {shelf.next(0.0)[0], shelf.next(0.1)[0]} == {"a", "b"}
    assert shelf.next(0.2) == ("", None), "no news"
    shelf.put("b", picture)
    assert shelf.next(0.3)[0] == "b"
    assert {shelf.next(AGAIN_S + 0.5)[0], shelf.next(AGAIN_S + 0.6)[0]} == {"a", "b"}
    shelf.put("a", None)
    assert shelf.sessions == ("b",)
