"""A real Slurm of two nodes on this one machine, for as long as a test session lasts.

Each node is a slurmd in its own UTS, mount, PID and network namespace, and so is the controller, whose network is
the switch between them. Outside of these nothing is bound, made or changed but a temporary folder, so that another
Slurm on this machine, even another of these, is not disturbed. They all end with the process that started them,
however it ends.
"""

import os
import secrets
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path

NODES = ("n1", "n2")
CONTROLLER = "controller"
_ADDRESSES = {CONTROLLER: "10.77.0.100", "n1": "10.77.0.1", "n2": "10.77.0.2"}  # of a network that only they see
_PROGRAMS = {
    "slurmctld": "slurmctld",
    "slurmd": "slurmd",
    "sbatch": "slurm-client",
    "munged": "munge",
    "ip": "iproute2",
    "unshare": "util-linux",
}
_NAMESPACES = ["--net", "--uts", "--ipc", "--mount", "--pid", "--fork", "--mount-proc", "--kill-child"]
_ENTER = ["--net", "--uts", "--ipc", "--mount"]
_CONF = """
ClusterName=anychannel
SlurmctldHost={controller}({address})
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CredType=cred/munge
# A requeued job waits until its old credentials have expired. Less than 5 s would count as unset.
AuthInfo=socket={home}/munge.socket,cred_expire=5
StateSaveLocation={home}/state
SlurmdSpoolDir={home}/spool.%n
SlurmctldPidFile={home}/slurmctld.pid
SlurmdPidFile={home}/slurmd.%n.pid
SlurmctldLogFile={home}/slurmctld.log
SlurmdLogFile={home}/slurmd.%n.log
MailProg=/bin/true
# Nothing of the machine's own: no cgroups, no accounting.
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MpiDefault=none
SwitchType=switch/none
PropagateResourceLimits=NONE
# Sizes are made up, and jobs start at once.
SlurmdParameters=config_overrides
SchedulerParameters=bf_interval=1,sched_interval=1,sched_min_interval=0,batch_sched_delay=0
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
KillWait=10
CompleteWait=0
ReturnToService=2
SlurmdTimeout=300
GresTypes=gpu
NodeName={nodes} CPUs=16 CoresPerSocket=16 RealMemory=64000 Gres=gpu:h100:2
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE DefaultTime=10
PartitionName=other Nodes=ALL MaxTime=INFINITE DefaultTime=10
"""


class NoCluster(RuntimeError):
    """No Slurm can be started here; the message says why."""


def why_not() -> str | None:
    """Why no cluster can be started on this machine, or None."""
    if os.geteuid() != 0:
        return "a Slurm of its own needs root"
    missing = sorted({package for name, package in _PROGRAMS.items() if not shutil.which(name)})
    if missing:
        return f"a Slurm of its own needs the packages {' '.join(missing)}"
    cable = "ip link add a0 type bridge && ip link add a1 type veth peer name a2"
    tried = subprocess.run(["unshare", *_NAMESPACES, "sh", "-c", cable], capture_output=True, text=True)
    return f"no namespaces here: {tried.stderr.strip()}" if tried.returncode else None


def wait_until(true: Callable[[], object], what: str, seconds: float = 120) -> None:
    """Poll until something holds.

    Raises:
        TimeoutError: it did not in time.
    """
    end = time.monotonic() + seconds
    while not true():
        if time.monotonic() > end:
            raise TimeoutError(f"after {seconds} s: {what}")
        time.sleep(0.1)


class Cluster:
    """Two nodes, n1 and n2, that are up between `start` and `stop`.

    Args:
        root: folder that jobs are submitted from.
        env: what jobs get to know of the environment, beside PATH.
    """

    def __init__(self, root: Path, env: Mapping[str, str]) -> None:
        self.root = root
        # Not pytest's: munge wants folders that others may enter, and sockets short names.
        self.home = Path(tempfile.mkdtemp(prefix="anychannel-slurm-"))
        path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
        self._env = {"PATH": path, "LANG": "C.UTF-8", "SLURM_CONF": str(self.home / "slurm.conf"), **env}
        self._holders: dict[str, subprocess.Popen] = {}

    def start(self) -> None:
        """Bring controller and nodes up, and wait until the nodes are free for jobs.

        Raises:
            NoCluster: they did not come up.
        """
        self._write_files()
        try:
            self._boot(CONTROLLER)
            for node in NODES:
                self.power_on(node)
            self.until_idle()
        except (TimeoutError, subprocess.CalledProcessError) as error:
            told = "".join(file.read_text()[-600:] for file in sorted(self.home.glob("*.log")))
            self.stop()
            raise NoCluster(f"Slurm did not come up ({error}): {told}") from error

    def stop(self) -> None:
        """End everything that runs in the cluster, and remove its files."""
        for name in [*self._holders]:
            self.power_off(name)
        shutil.rmtree(self.home)

    def power_off(self, node: str) -> None:
        """Cut a machine's power: whatever runs there is gone, and nobody is told."""
        holder = self._holders.pop(node)
        holder.kill()
        holder.wait()

    def power_on(self, node: str) -> None:
        """Boot a machine and plug its cable in."""
        self._boot(node)
        other_end = ["peer", "name", "eth0", "netns", str(self._holders[node].pid)]
        self.on(CONTROLLER, "ip", "link", "add", f"to-{node}", "type", "veth", *other_end)
        self.on(CONTROLLER, "ip", "link", "set", f"to-{node}", "master", "br0", "up")

    def fail(self, node: str) -> None:
        """Cut a machine's power, and spare the controller the minutes until it believes it."""
        self.power_off(node)
        self.run("scontrol", "update", f"nodename={node}", "state=down", "reason=power")

    def repair(self, node: str) -> None:
        """Bring a failed machine back."""
        self.power_on(node)
        self.until_idle()

    def until_idle(self) -> None:
        """Wait until both nodes are free for jobs."""
        idle = {f"{node} idle" for node in NODES}
        sinfo = ["sinfo", "--noheader", "--Node", "--partition=main", "--format=%N %t"]
        wait_until(lambda: idle <= {*self.run(*sinfo, check=False).stdout.splitlines()}, "a node is not idle", 60)

    def run(self, *command: str, check: bool = True, **env: str) -> subprocess.CompletedProcess:
        """A user's command, started in the folder that jobs are submitted from."""
        words = self._entered(CONTROLLER, "env", f"--chdir={self.root}", *command)
        done = subprocess.run(words, env=self._env | env, capture_output=True, text=True, timeout=60)
        assert not check or done.returncode == 0, f"{' '.join(command)}: {done.stderr}"
        return done

    def on(self, machine: str, *command: str) -> None:
        """A command of a machine's administrator."""
        subprocess.run(
            self._entered(machine, *command), env=self._env, check=True, capture_output=True, timeout=30
        )

    def _entered(self, machine: str, *command: str) -> list[str]:
        return ["nsenter", f"--target={self._holders[machine].pid}", *_ENTER, "--", *command]

    def _write_files(self) -> None:
        self.home.chmod(0o755)
        (self.home / "state").mkdir()
        key = self.home / "munge.key"
        key.touch(mode=0o600)
        key.write_bytes(secrets.token_bytes(256))
        hosts = "".join(f"{address} {name}\n" for name, address in _ADDRESSES.items())
        (self.home / "hosts").write_text(f"127.0.0.1 localhost\n{hosts}")
        names = {"controller": CONTROLLER, "address": _ADDRESSES[CONTROLLER], "nodes": ",".join(NODES)}
        (self.home / "slurm.conf").write_text(_CONF.format(home=self.home, **names))
        for gpu in range(2):  # Slurm only looks whether it is a character device: twins of /dev/null
            os.mknod(self.home / f"gpu{gpu}", 0o666 | 0o020000, os.makedev(1, 3))
        devices = f"AutoDetect=off\nName=gpu Type=h100 File={self.home}/gpu[0-1]\n"
        (self.home / "gres.conf").write_text(devices)

    def _boot(self, name: str) -> None:
        (self.home / f"spool.{name}").mkdir(exist_ok=True)
        up = self.home / f"{name}.up"
        up.unlink(missing_ok=True)
        script = str(Path(__file__).with_name("node.sh"))
        # Should this process be killed, unshare is too, and with it all that it holds.
        words = ["setpriv", "--pdeathsig", "KILL", "unshare", *_NAMESPACES]
        words += ["bash", script, str(self.home), name, _ADDRESSES[name]]
        with (self.home / f"boot.{name}.log").open("w") as log:
            self._holders[name] = subprocess.Popen(
                words, env=self._env, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )
        # Before that its namespaces are still this machine's.
        wait_until(up.exists, f"{name} did not boot", 20)
