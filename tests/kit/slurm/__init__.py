"""A real Slurm on the loopback interface, in a temporary folder, taken down by pid.

In a test::

    with LoopbackSlurm(tmp_path, nodes=2) as slurm:
        ...  # sbatch and the others find it by slurm.environment

As a program, to try things by hand until interrupted::

    python -m tests.kit.slurm [NODES]
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import TracebackType

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "squeue", "scancel", "scontrol")
_ROOT_PLACES = "/usr/sbin:/usr/local/sbin:/sbin"

CONFIG = """\
ClusterName=loopback
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller_port}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket
CryptoType=crypto/munge
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerType=sched/backfill
SchedulerParameters=batch_sched_delay=0,sched_interval=1,sched_min_interval=0,bf_interval=1
PreemptType=preempt/partition_prio
PreemptMode=CANCEL
ReturnToService=2
KillWait=2
MinJobAge=300
SlurmctldTimeout=30
SlurmdTimeout=30
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
SlurmdParameters=config_overrides
"""
NODE = (
    "NodeName={name} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} CPUs={cpus} State=UNKNOWN\n"
)
PARTITION = "PartitionName={name} Nodes=ALL Default={default} PriorityTier={tier} State=UP\n"


def missing() -> str:
    """Why there can be no Slurm here; empty if there can."""
    absent = [name for name in PROGRAMS if _find(name) is None]
    return f"Slurm is not installed: no {', '.join(absent)}" if absent else ""


class LoopbackSlurm:
    """A controller and some nodes; partition ``main``, and ``urgent``, which preempts it.

    Args:
        folder: an existing folder for everything; its path must be short.
        cpus: processors that each node claims to have.
    """

    def __init__(self, folder: Path, nodes: int = 1, cpus: int = 4) -> None:
        self.folder, self.cpus = folder, cpus
        self.nodes = [f"node{number}" for number in range(1, nodes + 1)]
        self._processes: dict[str, subprocess.Popen[bytes]] = {}

    @property
    def config(self) -> Path:
        """The file that ``SLURM_CONF`` names."""
        return self.folder / "slurm.conf"

    @property
    def environment(self) -> dict[str, str]:
        """What lets Slurm's commands find this one."""
        return {"SLURM_CONF": str(self.config)}

    def __enter__(self) -> LoopbackSlurm:
        try:
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def start(self) -> None:
        """Start all and wait until every node is idle."""
        for name in ("munge", "state", *(f"spool-{node}" for node in self.nodes)):
            (self.folder / name).mkdir(mode=0o755)
        self._start_munge()
        self._write_config()
        self._start("slurmctld", "slurmctld", "-D", "-i", "-f", str(self.config))
        for node in self.nodes:
            self.start_node(node)
        self._wait(self._is_ready, "no node became idle")

    def start_node(self, node: str) -> None:
        """Start the daemon of a node."""
        self._start(node, "slurmd", "-D", "-f", str(self.config), "-N", node)

    def resume_nodes(self) -> None:
        """Bring back nodes that were set down or drained, and wait until all are idle."""
        for node in self.nodes:
            self.call("scontrol", "update", f"nodename={node}", "state=resume", check=False)
        self._wait(self._is_ready, "no node became idle")

    def stop(self) -> None:
        """End all that was started, jobs first."""
        if "slurmctld" in self._processes and self.config.exists():
            self.call("scancel", "--quiet", "--me", check=False)
            time.sleep(0.2)
        for name in reversed(list(self._processes)):
            process = self._processes.pop(name)
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(5)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def call(self, *command: str, check: bool = True) -> str:
        """Run one of Slurm's commands and return what it prints."""
        found = subprocess.run(
            command,
            env={**os.environ, **self.environment},
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )
        if check and found.returncode:
            raise RuntimeError(f"{' '.join(command)}: {found.stderr.strip()}")
        return found.stdout

    # --- parts --------------------------------------------------------------------------------

    def _start_munge(self) -> None:
        folder = self.folder / "munge"
        key = folder / "key"
        key.write_bytes(os.urandom(128))
        key.chmod(0o400)
        files = {f"--{n}-file": folder / n for n in ("key", "log", "pid", "seed")}
        options = [f"{option}={path}" for option, path in files.items()]
        socket_path = folder / "socket"
        self._start("munged", "munged", "-F", "--force", f"--socket={socket_path}", *options)
        self._wait(socket_path.exists, "munged did not start")

    def _write_config(self) -> None:
        host = os.uname().nodename.partition(".")[0]
        ports = free_ports(len(self.nodes) + 1)
        user = "root" if os.getuid() == 0 else os.environ.get("USER", str(os.getuid()))
        text = CONFIG.format(host=host, controller_port=ports[0], user=user, folder=self.folder)
        for node, port in zip(self.nodes, ports[1:], strict=True):
            text += NODE.format(name=node, host=host, port=port, cpus=self.cpus)
        text += PARTITION.format(name="main", default="YES", tier=1)
        text += PARTITION.format(name="urgent", default="NO", tier=10)
        self.config.write_text(text, encoding="utf-8")

    def _start(self, name: str, program: str, *arguments: str) -> None:
        path = _find(program)
        assert path is not None, missing()
        with open(self.folder / f"{name}.out", "wb") as output:
            self._processes[name] = subprocess.Popen(
                [path, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )

    def _is_ready(self) -> bool:
        states = self.call("sinfo", "-h", "-N", "-p", "main", "-o", "%T", check=False).split()
        return len(states) == len(self.nodes) and set(states) == {"idle"}

    def _wait(self, wanted: object, complaint: str, limit_s: float = 20.0) -> None:
        deadline = time.monotonic() + limit_s
        while not wanted():  # type: ignore[operator]
            ended = [n for n, p in self._processes.items() if p.poll() is not None]
            if ended or time.monotonic() > deadline:
                raise RuntimeError(f"{complaint}; ended: {ended or 'none'}\n{self._last_words()}")
            time.sleep(0.1)

    def _last_words(self) -> str:
        files = sorted([*self.folder.glob("*.out"), *self.folder.glob("*.log")])
        return "\n".join(f"{f.name}: {f.read_text(errors='replace')[-800:]}" for f in files)


def free_ports(count: int) -> list[int]:
    """Return ports of the loopback interface that nobody listens on."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    try:
        return [one.getsockname()[1] for one in sockets]
    finally:
        for one in sockets:
            one.close()


def _find(program: str) -> str | None:
    return shutil.which(program) or shutil.which(program, path=_ROOT_PLACES)


def main() -> None:
    """Run a Slurm until interrupted."""
    nodes = int(sys.argv[1]) if len(sys.argv) > 1 else 1
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    folder = tempfile.mkdtemp(prefix="slurm-")
    try:
        with LoopbackSlurm(Path(folder), nodes) as slurm:
            print(f"export SLURM_CONF={slurm.config}", flush=True)
            signal.pause()
    except KeyboardInterrupt:
        return
    finally:
        shutil.rmtree(folder, ignore_errors=True)
