"""The process between controller and job: it starts, hears, limits and ends one job.

The controller starts it with :data:`BOOT`, writes an :class:`Order` as one line of JSON to
its standard input, and keeps that pipe open. It answers on standard output, one JSON
object a line: ``started``, then ``line`` for lines of ranks, at last ``result``, or
``failed`` when the job could not be started. The job is ended when the controller asks for
it (a line ``cancel``), when the pipe closes, or when the controller is no longer there.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import selectors
import signal
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

from . import failures, processes, scratch
from .capture import METRICS_STARTS, Allowance, Lines, LogFile, Stream

BOOT = (
    "import sys; sys.path.insert(0, sys.argv[1]); "
    "from executors.supervisor import main; sys.exit(main())"
)
"""Code that runs the supervisor. Its arguments are the folder above this package, and the
marker of the job, by which the process can be told from others."""
TICK_S = 0.5
"""Seconds between two looks at the controller."""
DUMP_S = 0.5
"""Seconds that the ranks of a job over its limits have to say where they are."""
KILL_S = 5.0
"""Seconds after which processes that cannot be killed are given up."""
RECENT = 64 * 1024
"""Bytes of the end of standard error in which causes are looked for."""
CLOSE_CALL_S = 5.0
"""A traceback that began so many seconds before the first rank ended belongs to the end."""
MAX_BACKLOG = 8 << 20
"""Bytes that may wait for the controller before lines without metrics are dropped."""
PIPE_SIZE = 1 << 16
"""Bytes written to the controller at once."""
NO_WORDS = (ValueError, LookupError, TypeError, OverflowError, RecursionError)
"""What goes wrong in reading words that a script may have written."""
LINES_PER_S, LINES_AT_ONCE = 100.0, 1000
"""How many lines without metrics are passed on, of rank 0 and of the others together."""


class Order(NamedTuple):
    """What the controller asks for.

    Attributes:
        command: program and arguments of the launcher.
        has_ranks: whether the launcher starts ranks that announce themselves; otherwise
            it is itself rank 0.
        controller: pid of the controller.
        marker: marks the job's processes.
        script: name of the script, for messages.
        cwd: folder that the job runs in.
        scratch: the job's private folder.
        log_dir: folder for logs.
        timeout_s: wall-clock limit in seconds.
        stall_s: limit without output in seconds.
        max_bytes: limit of all output together.
        log_head: bytes kept of the beginning of each stream.
        log_tail: bytes kept of its end.
        filter: file with the filter of system calls of the sandbox that the command makes;
            empty if it makes none.
        pipe_mode: permissions of the named pipes.
        cpus: those that the job may use; none for all that this process may.
        max_file: bytes of the largest file that it may write; 0 if that is limited elsewhere.
    """

    command: Sequence[str]
    has_ranks: bool
    nproc: int
    controller: int
    marker: str
    script: str
    cwd: str
    env: Mapping[str, str]
    scratch: str
    log_dir: str
    timeout_s: float
    stall_s: float
    max_bytes: int
    log_head: int
    log_tail: int
    filter: str = ""
    pipe_mode: int = 0o600
    cpus: Sequence[int] = ()
    max_file: int = 0


class Controller:
    """The way back to the controller. It never blocks, so that limits hold."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._waiting = bytearray()
        os.set_blocking(fd, False)

    @property
    def backlog(self) -> int:
        """Bytes that wait."""
        return len(self._waiting)

    def put(self, event: str, **facts: Any) -> None:
        """Queue an event for :meth:`flush`."""
        self._waiting += json.dumps({"event": event, **facts}).encode() + b"\n"

    def flush(self) -> None:
        """Write what the pipe takes now; a controller that is gone is no error here."""
        try:
            while self._waiting:
                del self._waiting[: os.write(self._fd, self._waiting[:PIPE_SIZE])]
        except BlockingIOError:
            return
        except OSError:
            self._waiting.clear()

    def finish(self, is_there: Callable[[], bool]) -> None:
        """Write everything, however long a controller that is there takes to read it.

        It may have been stopped for a while; what it would miss is the end of a whole training.
        """
        self.flush()
        while self._waiting and is_there():
            select.select([], [self._fd], [], TICK_S)
            self.flush()


class Rank:
    """One rank: its streams and what is known of its process.

    Attributes:
        has_begun: whether its process is known to have been started.
        pid: None until the rank has announced itself, and if it had ended by then.
        ended_at: monotonic time at which its process was seen to end.
        error_file: path that it says torch gave it for its error; not to be trusted.
    """

    def __init__(self, number: int, stdout: Stream, stderr: Stream, reserve: Allowance) -> None:
        self.number, self.stdout, self.stderr = number, stdout, stderr
        self.lines = Lines(reserve)
        self.has_begun = False
        self.pid: int | None = None
        self.ended_at: float | None = None
        self.error_file = ""


class Supervisor:
    """Runs one job to its end and tells the controller of it.

    Args:
        early: what came from the controller after the order.
    """

    def __init__(self, order: Order, controller: Controller, early: bytes = b"") -> None:
        self.order, self.controller = order, controller
        self._selector = selectors.DefaultSelector()
        self._logs: list[LogFile] = []
        self._readers: list[Callable[[], bool]] = []
        self._ranks: list[Rank] = []
        self._launcher: Stream | None = None
        self._launcher_pid = -1
        self._status: int | None = None
        self._is_enclosed = not order.filter
        self._request: tuple[str, str] | None = None
        self._input = early
        self._is_orphan = False
        self._bytes = 0
        self._began = self._heard = time.monotonic()

    # --- beginning --------------------------------------------------------------------------

    def start(self) -> None:
        """Make pipes and logs, then start the launcher.

        Raises:
            OSError: the folders or the machine do not allow it.
        """
        processes.become_subreaper()
        self._listen(0, self._on_controller)
        self._obey(b"")
        self._take_signals()
        reserves = [Allowance(LINES_PER_S, LINES_AT_ONCE) for _ in range(2)]
        for number in range(self.order.nproc):
            self._ranks.append(self._make_rank(number, reserves[min(number, 1)]))
        if self.order.filter:
            self._serve(self._make_stream("entry"), self._on_entered)
        stdout, stderr = self._ranks[0].stdout, self._ranks[0].stderr
        if self.order.has_ranks:
            self._serve(self._make_stream("ranks"), self._on_announcement)
            stdout = stderr = self._launcher = self._make_stream("launcher", "launcher.log", RECENT)
            self._serve(self._launcher)
        self._spawn(stdout.write_fd, stderr.write_fd)

    def _make_rank(self, number: int, reserve: Allowance) -> Rank:
        stdout = self._make_stream(f"{number}.stdout", f"rank{number}.stdout.log")
        stderr = self._make_stream(f"{number}.stderr", f"rank{number}.stderr.log", RECENT)
        rank = Rank(number, stdout, stderr, reserve)
        self._serve(stdout, lambda data: self._pass_on(rank, rank.lines.feed(data)))
        self._serve(stderr)
        return rank

    def _make_stream(self, name: str, log: str = "", keep_recent: int = 0) -> Stream:
        file = None
        if log:
            path = os.path.join(self.order.log_dir, log)
            file = LogFile(path, self.order.log_head, self.order.log_tail)
            self._logs.append(file)
        path = os.path.join(self.order.scratch, "pipes", name)
        return Stream(path, file, keep_recent, self.order.pipe_mode)

    def _serve(self, stream: Stream, on_data: Callable[[bytes], None] | None = None) -> None:
        def read() -> bool:
            data = stream.read()
            if data:
                self._bytes += len(data)
                self._heard = time.monotonic()
                if on_data is not None:
                    on_data(data)
            return bool(data)

        self._readers.append(read)
        self._listen(stream.fd, read)

    def _listen(self, fd: int, call: Callable[[], object]) -> None:
        self._selector.register(fd, selectors.EVENT_READ, call)

    def _take_signals(self) -> None:
        """Hear of ended children at once; let no signal but SIGTERM be answered."""
        wake, woken = os.pipe()
        os.set_blocking(wake, False)
        os.set_blocking(woken, False)
        signal.set_wakeup_fd(woken, warn_on_full_buffer=False)
        self._listen(wake, lambda: os.read(wake, 4096))
        # Handlers, because what is ignored here would be ignored in the job as well.
        for signum in (signal.SIGCHLD, signal.SIGINT, signal.SIGHUP):
            signal.signal(signum, lambda signum, frame: None)
        signal.signal(
            signal.SIGTERM, lambda signum, frame: self._ask("lost", "the supervisor was ended")
        )

    def _spawn(self, stdout: int, stderr: int) -> None:
        self._began = self._heard = time.monotonic()
        with _opened(self.order.filter) as files:
            self._process = subprocess.Popen(
                _with_filter(self.order.command, files),
                cwd=self.order.cwd,
                env=dict(self.order.env),
                stdin=subprocess.DEVNULL,
                stdout=stdout,
                stderr=stderr,
                preexec_fn=partial(_prepare_launcher, self.order.cpus, self.order.max_file),
                pass_fds=files,
            )
        self._launcher_pid = self._process.pid
        if not self.order.has_ranks and not self.order.filter:
            self._begin(self._ranks[0], self._launcher_pid)

    # --- running ----------------------------------------------------------------------------

    def run(self) -> None:
        """Serve the job until it ends or has to end; then end all of it and report."""
        self.controller.put("started")
        self.controller.flush()
        while self._status is None and self._request is None:
            self._turn(self._patience())
            self._check_limits()
        if self._status is None and self._ending in ("timed_out", "stalled"):
            self._dump_stacks()
        wall_s = time.monotonic() - self._began
        left = processes.end_all(self.find_descendants, KILL_S)
        self._drain()
        self._report(wall_s, left)
        if self._is_orphan:
            scratch.remove(self.order.scratch)

    @property
    def _ending(self) -> str:
        if self._request is not None:
            return self._request[0]
        return "finished" if self._status == 0 else "crashed"

    def _ask(self, ending: str, reason: str) -> None:
        """Have the job ended; the first to ask is heard."""
        if self._request is None:
            self._request = (ending, reason)

    def _become_orphan(self) -> None:
        """Take note that nobody is there to clear up."""
        self._is_orphan = True
        self._ask("cancelled", "the controller is gone")

    def _turn(self, timeout_s: float) -> None:
        for key, _ in self._selector.select(timeout_s):
            key.data()
        self._collect()
        self.controller.flush()

    def _patience(self) -> float:
        """Seconds until something has to be looked at."""
        if self.controller.backlog:
            return 0.02
        now = time.monotonic()
        limits = (self._began + self.order.timeout_s, self._heard + self.order.stall_s)
        return max(0.0, min(TICK_S, *(limit - now for limit in limits)))

    def _check_limits(self) -> None:
        if self._status is not None:
            return
        order, now = self.order, time.monotonic()
        if not _is_there(order):
            self._become_orphan()
        elif self._bytes > order.max_bytes:
            self._ask("flooded", f"more than {order.max_bytes // 1_000_000} MB of output")
        elif now - self._began >= order.timeout_s:
            self._ask("timed_out", f"not finished after {order.timeout_s:g} s")
        elif now - self._heard >= order.stall_s:
            self._ask("stalled", f"no output for {order.stall_s:g} s")

    def _collect(self) -> None:
        """Collect ended children: the launcher, and orphans that came to this process."""
        ended = processes.collect_zombies()
        if self._launcher_pid in ended:
            self._status = os.waitstatus_to_exitcode(ended[self._launcher_pid])
            self._process.returncode = self._status
            if self.order.filter:
                self._status = _inner_status(self._status)

    def find_descendants(self) -> set[int]:
        """Return the pids below this process, after it has collected what has ended."""
        self._collect()
        return processes.own_descendants(self.order.marker)

    # --- what comes in ----------------------------------------------------------------------

    def _on_controller(self) -> None:
        data = os.read(0, 4096)
        if not data:
            self._selector.unregister(0)
            self._become_orphan()
        self._obey(data)

    def _obey(self, words: bytes) -> None:
        self._input += words
        if b"cancel\n" in self._input:
            self._ask("cancelled", "cancelled")
        self._input = self._input[-len(b"cancel\n") :]

    def _on_entered(self, data: bytes) -> None:
        """Take note that the sandbox stands, and who in it becomes the launcher."""
        if self._is_enclosed:
            return
        self._is_enclosed = True
        if not self.order.has_ranks:
            self._begin(self._ranks[0], self._outer_pid(json.loads(data.splitlines()[0])["pid"]))

    def _on_announcement(self, data: bytes) -> None:
        for line in data.splitlines():
            with contextlib.suppress(*NO_WORDS):
                self._meet(json.loads(line))

    def _meet(self, words: Mapping[str, Any]) -> None:
        """Take note of who a rank is; what the script may write later is not believed."""
        rank, pid = self._ranks[int(words["rank"])], int(words["pid"])
        if rank.has_begun:
            return
        rank.error_file = str(words["error_file"])
        self._begin(rank, self._outer_pid(pid) if self.order.filter else pid)

    def _begin(self, rank: Rank, pid: int | None) -> None:
        rank.has_begun, rank.pid = True, pid
        descriptor = None if pid in (None, self._launcher_pid) else processes.open_process(pid or 0)
        if descriptor is not None:
            self._listen(descriptor, lambda: self._on_rank_ended(rank, descriptor))

    def _outer_pid(self, inner: int) -> int | None:
        return processes.with_inner_pid(inner, self.find_descendants())

    def _own_file(self, path: str) -> str:
        """The path of a file in the job's folder; empty if it leads anywhere else.

        To be asked when all processes have ended, as a script can change where a path leads.
        """
        folder = os.path.realpath(self.order.scratch)
        with contextlib.suppress(*NO_WORDS):
            if os.path.realpath(path).startswith(folder + os.sep):
                return path
        return ""

    def _on_rank_ended(self, rank: Rank, descriptor: int) -> None:
        rank.ended_at = time.monotonic()
        self._selector.unregister(descriptor)
        os.close(descriptor)

    def _pass_on(self, rank: Rank, lines: Iterable[bytes]) -> None:
        at_s = round(time.monotonic() - self._began, 3)
        for line in lines:
            if line.startswith(METRICS_STARTS) or self.controller.backlog < MAX_BACKLOG:
                text = line.decode("utf-8", "backslashreplace")
                self.controller.put("line", rank=rank.number, text=text, at_s=at_s)

    # --- ending -----------------------------------------------------------------------------

    def _dump_stacks(self) -> None:
        """Let the ranks say where they are: Python's fault handler writes it on SIGABRT."""
        own = self.find_descendants()
        asked = [rank for rank in self._ranks if rank.pid in own and rank.ended_at is None]
        for rank in asked:
            processes.kill(rank.pid or 0, signal.SIGABRT)
        deadline = time.monotonic() + DUMP_S
        while self._is_any_alive(asked) and time.monotonic() < deadline:
            self._turn(0.02)

    def _is_any_alive(self, ranks: Iterable[Rank]) -> bool:
        return self._status is None and any(rank.ended_at is None for rank in ranks)

    def _drain(self) -> None:
        """Read what the pipes still hold, which is bounded: nobody is left to write."""
        for read in self._readers:
            for _ in range(8):
                if not read():
                    break
        for rank in self._ranks:
            self._pass_on(rank, rank.lines.rest())
        for log in self._logs:
            log.close()

    def _report(self, wall_s: float, left: Iterable[int]) -> None:
        ending, errors = self._ending, self._errors()
        reason = self._request[1] if self._request else ""
        if ending == "crashed":
            reason = failures.reason(errors[0], name_rank=self.order.has_ranks)
        elif errors:
            hang = failures.reason(errors[0], name_rank=self.order.has_ranks)
            reason = f"{reason}; {hang}"
        if ending in ("crashed", "stalled") and not any(rank.has_begun for rank in self._ranks):
            what = "torchrun could not start the script"
            if not self._is_enclosed:
                what = "the sandbox could not be made"
            ending, reason = "lost", f"{what}: {reason}"
        self.controller.put(
            "result",
            ending=ending,
            exit_code=self._exit_code(),
            reason=reason,
            errors=errors,
            has_begun=any(rank.has_begun for rank in self._ranks),
            wall_s=round(wall_s, 3),
            left=sorted(left),
        )
        self.controller.finish(partial(_is_there, self.order))

    def _exit_code(self) -> int | None:
        if self._request is not None or self._status is None or self._status < 0:
            return None
        return self._status

    # --- causes -----------------------------------------------------------------------------

    def _errors(self) -> list[dict[str, Any]]:
        if self._ending in ("timed_out", "stalled"):
            script = self.order.script
            hangs = [failures.hang(r.number, r.stderr.recent, script) for r in self._ranks]
            return [error for error in hangs if error]
        if self._ending != "crashed":
            return []
        if self._launcher is None:
            return [failures.rank_error(0, self._status, self._ranks[0].stderr.recent)]
        output = self._launcher.recent
        return self._rank_errors(output) or [failures.launcher_error(self._status, output)]

    def _rank_errors(self, output: str) -> list[dict[str, Any]]:
        """The causes by rank, the first to fail first.

        The launcher looks at its ranks ten times a second and names the lowest of those
        that it finds dead, although the others may only have died of the first. So the
        order is that in which tracebacks began, or processes ended.
        """
        status = failures.summary(output)
        failed = [r for r in self._ranks if self._has_failed(r, status.get(r.number))]
        failed = failed or [r for r in self._ranks if status.get(r.number)]
        return failures.grouped(
            failures.rank_error(
                r.number, status.get(r.number), r.stderr.recent, self._own_file(r.error_file)
            )
            for r in sorted(failed, key=self._failed_at)
        )

    def _has_failed(self, rank: Rank, status: int | None) -> bool:
        """Whether a rank failed by itself; the launcher ends the others by SIGTERM."""
        if status is not None and status not in (0, -signal.SIGTERM):
            return True
        ends = [r.ended_at for r in self._ranks if r.ended_at is not None]
        first_end = min(ends, default=time.monotonic())
        began = rank.stderr.traceback_at
        return began is not None and began > first_end - CLOSE_CALL_S

    def _failed_at(self, rank: Rank) -> float:
        times = (rank.stderr.traceback_at, rank.ended_at, float("inf"))
        return next(at for at in times if at is not None)


def _is_there(order: Order) -> bool:
    """Whether the controller lives."""
    return os.getppid() == order.controller


@contextlib.contextmanager
def _opened(path: str) -> Iterator[list[int]]:
    """Open a file for a child, if there is one."""
    descriptors = [os.open(path, os.O_RDONLY)] if path else []
    try:
        yield descriptors
    finally:
        for descriptor in descriptors:
            os.close(descriptor)


def _with_filter(command: Sequence[str], descriptors: Iterable[int]) -> list[str]:
    options = [word for number in descriptors for word in ("--seccomp", str(number))]
    return [command[0], *options, *command[1:]]


def _inner_status(status: int) -> int:
    """What a process in a sandbox ended with, minus the number for a signal.

    The sandbox ends as a shell does, with 128 and the number of the signal.
    """
    number = status - 128
    return -number if number in set(signal.Signals) else status


def _prepare_launcher(cpus: Iterable[int], max_file: int) -> None:
    if cpus:
        os.sched_setaffinity(0, cpus)
    if max_file:
        processes.limit_files(max_file)
    processes.die_with_parent()
    processes.no_core_dumps()
    processes.offer_to_oom_killer()


def main() -> int:
    """Take an order from standard input, run it, report on standard output."""
    order, rest = _read_order()
    controller = Controller(1)
    supervisor = Supervisor(order, controller, rest)
    try:
        supervisor.start()
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        controller.put("failed", message=str(error))
        controller.finish(partial(_is_there, order))
        return 1
    try:
        supervisor.run()
    finally:
        processes.end_all(supervisor.find_descendants, KILL_S)
    return 0


def _read_order() -> tuple[Order, bytes]:
    """The order, and what was read beyond it."""
    data = b""
    while b"\n" not in data:
        piece = os.read(0, 1 << 16)
        if not piece:
            raise EOFError("the controller gave no order")
        data += piece
    line, _, rest = data.partition(b"\n")
    return Order(**json.loads(line)), rest
