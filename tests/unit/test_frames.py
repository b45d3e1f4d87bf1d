"""Frames: whatever the socket makes of them, messages arrive whole, in order, and only whole."""

from __future__ import annotations

import itertools
import socket

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rose_hpc.execution import frames
from rose_hpc.execution.frames import Receiver, Unpacker, pack, unpack

MESSAGES = st.dictionaries(
    st.text(max_size=8), st.integers() | st.text(max_size=20) | st.lists(st.booleans()), max_size=3
)
FRAMES = st.lists(st.tuples(MESSAGES, st.binary(max_size=40)), max_size=6)


@settings(deadline=None)
@given(FRAMES, st.lists(st.integers(0, 400)))
def test_frames_survive_any_cuts(sent, cuts):
    """Cut anywhere, byte by byte or all at once, a stream gives the frames that were sent."""
    data = b"".join(pack(*frame) for frame in sent)
    edges = [0, *sorted(min(cut, len(data)) for cut in cuts), len(data)]
    unpacker, got = Unpacker(), []
    for start, end in itertools.pairwise(edges):
        got += unpacker.feed(data[start:end])
    assert got == sent


@settings(deadline=None)
@given(FRAMES)
def test_all_readers_agree(sent):
    """The host's reader and that of messages of ZeroMQ take the same bytes for the same frames."""
    data = b"".join(pack(*frame) for frame in sent)
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.sendall(data)
        ours.shutdown(socket.SHUT_WR)
        blocking, receiver = [], Receiver(theirs)
        while (frame := receiver.next()) is not None:
            blocking.append(frame)
    assert blocking == unpack(data) == sent


def test_a_frame_cut_short_is_no_frame():
    """A peer that dies in the middle of a message has sent none."""
    data = pack({"op": "done"}, b"value")
    for cut in range(len(data)):
        ours, theirs = socket.socketpair()
        with ours, theirs:
            ours.sendall(data[:cut])
            ours.shutdown(socket.SHUT_WR)
            assert Receiver(theirs).next() is None
        assert Unpacker().feed(data[:cut]) == []
        if cut:
            with pytest.raises(ValueError, match="no whole frame"):
                unpack(data[:cut])


def test_a_value_too_large_to_send_is_refused(monkeypatch):
    """A value whose length does not fit is an error that says where large data belong, not a broken stream."""
    monkeypatch.setattr(frames, "MOST_BYTES", 10)
    with pytest.raises(ValueError, match="a value of 11 bytes is too large to send; leave large data in files"):
        pack({}, b"x" * 11)
