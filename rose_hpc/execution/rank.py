"""What runs beside the work, on the embedded engine once, under a pilot in every rank: a supervisor, and how it is
started.

``python -m rose_hpc.execution.rank`` serves attempts over the socket that is its standard input. With ``--connect HEX``
it serves the hub that wrote the file whose path is HEX (hexadecimal, so that no shell on the way can misread it). With
``--once HEX`` it carries out the one attempt that the JSON file HEX describes, and leaves the outcome beside it. When
its driver is gone, it ends all it started, and itself.
"""

from __future__ import annotations

import json
import logging
import os
import selectors
import signal
import socket
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rose_hpc.execution import keeper
from rose_hpc.execution.attempt import Attempt, Outcome
from rose_hpc.execution.child import python_argv
from rose_hpc.execution.frames import Unpacker, pack
from rose_hpc.execution.supervisor import Supervisor
from rose_hpc.ownership import Watch

log = logging.getLogger(__name__)

#: a supervisor without a socket looks this often whether its driver lives
HEARTBEAT_CHECK_S = 2.0
#: a driver without a heartbeat for so long is dead
SILENCE_S = 25.0


def serve(control: socket.socket) -> None:
    """Serve the driver at the other end of ``control`` until it is gone."""
    said: list[bytes] = []
    supervisor = Supervisor(lambda message, payload: said.append(pack(message, payload)))
    supervisor.adopt()
    unpacker = Unpacker()

    def on_control() -> None:
        try:
            data = control.recv(1 << 16)
        except ConnectionError:
            data = b""
        if not data:
            supervisor.kill_everything()
            return
        for message, payload in unpacker.feed(data):
            supervisor.handle(message, payload)

    def tell() -> None:
        try:
            while said:
                control.sendall(b"".join(said))
                said.clear()
        except ConnectionError:
            log.info("the driver is gone")  # the read side sees it too, and ends us
            said.clear()

    supervisor.selector.register(control, selectors.EVENT_READ, on_control)
    supervisor.after_round = tell
    _on_sigterm(supervisor)
    supervisor.run()


def once(spec_path: Path) -> int:
    """Carry out the one attempt of ``spec_path``, its outcome left in ``spec_path`` + ``.done``; the exit code."""
    spec = json.loads(spec_path.read_bytes())
    outcomes: list[Outcome] = []

    def report(message: Mapping[str, Any], _payload: bytes) -> None:
        if message["op"] == "done":
            outcomes.append(Outcome.from_json(message["outcome"]))
            supervisor.done = True

    def check_driver() -> None:
        if not driver.lives():
            log.error("the driver is gone: ending")
            supervisor.kill_everything()

    driver = Watch(Path(spec["owner"]), spec["epoch"], SILENCE_S)
    supervisor = Supervisor(report)
    supervisor.adopt()
    _on_sigterm(supervisor)
    supervisor.start(Attempt.from_json(spec["attempt"]), b"")
    supervisor.run(check_driver, HEARTBEAT_CHECK_S)
    for child in supervisor.children:
        child.signal(signal.SIGKILL)
    if not outcomes:
        return 1
    scratch = spec_path.with_suffix(".part")
    scratch.write_text(json.dumps(outcomes[0].to_json()))
    scratch.rename(f"{spec_path}.done")
    sys.stdout.write(outcomes[0].stdout)
    return 0 if outcomes[0].ok else 1


def _on_sigterm(supervisor: Supervisor) -> None:
    def stop(*_: object) -> None:
        supervisor.kill_everything()
        os._exit(143)  # select() would go on waiting

    signal.signal(signal.SIGTERM, stop)


def main(arguments: list[str]) -> int:
    """See the module's docstring."""
    logging.basicConfig(level=logging.WARNING, format="rose-hpc rank: %(message)s")
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the driver, which tells us
    keeper.start()
    if arguments[:1] == ["--once"]:
        return once(Path(bytes.fromhex(arguments[1]).decode()))
    if arguments[:1] == ["--connect"]:
        from rose_hpc.execution import remote  # here, because the others need no ZeroMQ

        if then := remote.serve(Path(bytes.fromhex(arguments[1]).decode())):
            os.environ.pop(keeper.VARIABLE, None)  # for our keeper, this is our end
            os.execv(sys.executable, python_argv(*then))  # noqa: S606 - one of our own modules
        return 0
    control = socket.socket(fileno=os.dup(0))
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 0)
    serve(control)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
