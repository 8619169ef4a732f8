"""Code of others in a process of its own: it may crash, hang or eat memory.

A child is this very file, run as a script, with the file of a class `Host`
whose methods may be asked for. It imports as little as it can, so that a fresh
process costs a tenth of a second. Requests go in and replies come out over one
pipe, sounds through a file that both sides have in memory. It ends when the
pipe does, and the kernel ends it when it hangs and nobody is left to notice.
"""

import contextlib
import importlib.util
import mmap
import multiprocessing.connection
import os
import pathlib
import resource
import signal
import socket
import subprocess
import sys
import tempfile
import weakref
from typing import Any

import numpy as np

# Longest sound that comes back, in samples: minutes at any usual rate.
CAPACITY = 2**24
# Seconds that a hanging call may take, above what its caller waits.
_GRACE = 30.0


class DeadError(Exception):
    """A child is gone; the message is "crash" or "hang"."""


class ReplyError(Exception):
    """A method raised; the arguments are the error's class and its words."""


def _end(process: subprocess.Popen[bytes], *files: Any) -> None:
    with contextlib.suppress(OSError):
        process.kill()
    process.wait()
    for file in files:
        file.close()


class Child:
    """A fresh process (started, never forked from this one).

    Args:
      host: file with the class `Host`; it is given the memory for sounds.
    """

    def __init__(self, host: pathlib.Path) -> None:
        ours, theirs = socket.socketpair()
        # What the others' code prints would spoil our own output.
        self._said = tempfile.TemporaryFile()  # noqa: SIM115, see `close`
        # Sounds come through memory: a pipe would cost a tenth of a render.
        memory = "/dev/shm" if os.path.isdir("/dev/shm") else None
        with theirs, tempfile.TemporaryFile(dir=memory) as sound:
            # Only what is written to takes memory.
            sound.truncate(CAPACITY * np.dtype(np.float32).itemsize)
            self._sound = mmap.mmap(sound.fileno(), 0)
            handles = [theirs.fileno(), sound.fileno()]
            command = [sys.executable, "-P", __file__, *map(str, handles)]
            self._process = subprocess.Popen(
                [*command, str(host)],
                pass_fds=handles,
                stdin=subprocess.DEVNULL,
                stdout=self._said,
                stderr=subprocess.STDOUT,
            )
        self._pipe = multiprocessing.connection.Connection(ours.detach())
        # Ends the child; only by whoever uses it. Others may `kill` it.
        self.close = weakref.finalize(
            self, _end, self._process, self._pipe, self._said, self._sound
        )

    def kill(self) -> None:
        """Ends the process; whoever waits for its reply sees it crash."""
        _end(self._process)

    def last_words(self) -> str:
        """What it printed last, in brackets; "" for nothing."""
        self._said.seek(0, os.SEEK_END)
        self._said.seek(max(self._said.tell() - 2000, 0))
        lines = self._said.read().decode(errors="replace").split("\n")
        lines = [line.strip() for line in lines if line.strip()]
        return f" (it said: {lines[-1][:200]})" if lines else ""

    def ask(self, method: str, *arguments: Any, timeout: float) -> Any:
        """Calls a method of the child's `Host`.

        Args:
          method: name of the method; "limit" grants so many bytes of memory
            above what is in use.
          *arguments: arguments of the method.
          timeout: seconds after which the child has hung.

        Returns:
          What it returned.

        Raises:
          DeadError: it crashed or hung; the child is of no use any more.
          ReplyError: it raised; the child is as it was.
        """
        try:
            self._pipe.send((method, timeout, arguments))
            if not self._pipe.poll(timeout):
                raise DeadError("hang")
            fine, reply = self._pipe.recv()
        except (EOFError, OSError):
            raise DeadError("crash") from None
        if not fine:
            raise ReplyError(*reply)
        return reply

    def sound(self, samples: int) -> np.ndarray:
        """A copy of the sound that was made last, `[samples]`, float32."""
        return np.frombuffer(self._sound, np.float32, samples).copy()


def _limit(most: int) -> None:
    """Grants this process so many bytes of memory above what is in use."""
    with contextlib.suppress(OSError), open("/proc/self/status") as file:
        words = [line.split() for line in file]
        used = next(int(w[1]) for w in words if w[0] == "VmData:") * 1024
        hard = resource.getrlimit(resource.RLIMIT_DATA)[1]
        resource.setrlimit(resource.RLIMIT_DATA, (used + most, hard))


def main() -> None:
    """Answers requests until the pipe ends."""
    # Ctrl-C goes to the whole group; the parent decides what it means.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    pipe = multiprocessing.connection.Connection(int(sys.argv[1]))
    shared = mmap.mmap(int(sys.argv[2]), 0)
    spec: Any = importlib.util.spec_from_file_location("host", sys.argv[3])
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    host = module.Host(np.frombuffer(shared, np.float32))
    while True:
        try:
            method, limit, arguments = pipe.recv()
        except EOFError:
            return
        signal.setitimer(signal.ITIMER_REAL, limit + _GRACE)
        try:
            call = _limit if method == "limit" else getattr(host, method)
            reply = True, call(*arguments)
        except Exception as error:
            reply = False, (type(error).__name__, str(error))
        signal.setitimer(signal.ITIMER_REAL, 0)
        try:
            pipe.send(reply)
        except BrokenPipeError:
            return


if __name__ == "__main__":
    main()
    # Not by way of the interpreter's end: plug-ins crash when they are
    # unloaded, and there is nothing left to save.
    os._exit(0)
