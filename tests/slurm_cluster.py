"""A Slurm cluster of one node on the loopback, run by the current user: munged, slurmctld and slurmd.

Everything they read and write lies in a temporary folder; commands find them by SLURM_CONF. Debian's packages are
slurm-wlm and munge.
"""

import contextlib
import os
import shutil
import socket
import subprocess
import tempfile
import time
from pathlib import Path

SECONDS_TO_START = 20
CONFIGURATION = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerType=sched/builtin
SchedulerParameters=batch_sched_delay=0,sched_interval=1
KillWait=2
SlurmdParameters=config_overrides
ReturnToService=2
MailProg=/bin/true
NodeName=node NodeHostname=localhost NodeAddr=127.0.0.1 CPUs=4 RealMemory=8000 State=UNKNOWN
PartitionName=all Nodes=node Default=YES MaxTime=INFINITE State=UP
"""


@contextlib.contextmanager
def cluster():
    """Sets SLURM_CONF to an idle cluster's; RuntimeError where its programs are missing or do not start."""
    path = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin"])
    programs = {name: shutil.which(name, path=path) for name in ("munged", "slurmctld", "slurmd", "sbatch", "srun")}
    missing = [name for name, program in programs.items() if program is None]
    if missing:
        raise RuntimeError(f"not installed: {', '.join(missing)}")
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="slurm-")))
        user = subprocess.check_output(["id", "-un"], text=True).strip()
        values = {"folder": folder, "host": socket.gethostname(), "ports": _free_ports(2), "user": user}
        (folder / "slurm.conf").write_text(CONFIGURATION.format(**values))
        (folder / "key").touch(mode=0o600)
        (folder / "key").write_bytes(os.urandom(128))
        (folder / "state").mkdir()
        (folder / "spool").mkdir()
        stack.enter_context(_environment_variable("SLURM_CONF", str(folder / "slurm.conf")))
        files = [f"--{name}-file={folder / name}" for name in ("key", "log", "pid", "seed")]
        daemons = []
        for command in (
            ["munged", "--foreground", "--force", f"--socket={folder}/munge.socket", *files],
            ["slurmctld", "-D"],
            ["slurmd", "-D", "-N", "node"],
        ):
            log = stack.enter_context((folder / f"{command[0]}.log").open("w"))
            daemon = subprocess.Popen(command, executable=programs[command[0]], stdout=log, stderr=subprocess.STDOUT)
            stack.callback(_stop, daemon)
            daemons.append(daemon)
        _wait_until_idle(folder, daemons)
        try:
            yield
        finally:
            subprocess.run(["scancel", "--user", user], check=True)
            _wait_until_idle(folder, daemons)


@contextlib.contextmanager
def _environment_variable(name, value):
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        os.environ.pop(name)
        if before is not None:
            os.environ[name] = before


def _free_ports(number):
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(number)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


def _wait_until_idle(folder, daemons):
    limit = time.monotonic() + SECONDS_TO_START
    while subprocess.run(["sinfo", "--noheader", "--format=%T"], capture_output=True, text=True).stdout != "idle\n":
        if time.monotonic() > limit or any(daemon.poll() is not None for daemon in daemons):
            logs = "\n".join(f"{path.name}:\n{path.read_text()}" for path in sorted(folder.glob("*.log")))
            raise RuntimeError(f"no idle node in {SECONDS_TO_START} s; the logs:\n{logs}")
        time.sleep(0.2)


def _stop(daemon):
    daemon.terminate()
    try:
        daemon.wait(10)
    except subprocess.TimeoutExpired:
        daemon.kill()
        daemon.wait()
