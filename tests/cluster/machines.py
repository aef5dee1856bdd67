"""Machines on one box, for tests of a real cluster: namespaces that see each other over a network.

Each machine has its own network, processes, mounts, host name, home and /tmp, and an SSH server.
All see the Python environment of the tests, where changes stay in the machine, and /srv/shared.
Their environment names an S3 server on the first machine, which a test may start there.
Nothing has a name outside: namespaces end with their first process, which ends with the process of
the tests, so even a crash leaves nothing to clean up.
"""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

PROGRAMS = ("ip", "nsenter", "rsync", "setpriv", "ssh", "sshd", "unshare")
SEARCH = "/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
HOME = "/srv/home"
SHARED = "/srv/shared"
WITH_PARENT = ("setpriv", "--pdeathsig", "KILL")  # end even if the tests are killed
SSHD = """
Port 22
HostKey /run/host_key
AuthorizedKeysFile .ssh/authorized_keys
PermitRootLogin yes
PasswordAuthentication no
UsePAM no
PidFile none
PrintMotd no
"""
BASHRC = """
export PIP_CONFIG_FILE=/dev/null PIP_NO_INDEX=1 PIP_ROOT_USER_ACTION=ignore
export AWS_ENDPOINT_URL=http://10.77.0.1:5000 AWS_EC2_METADATA_DISABLED=true
export AWS_ACCESS_KEY_ID=key AWS_SECRET_ACCESS_KEY=secret
"""


def what_is_missing() -> str:
    """Name what this box lacks to make machines; empty if nothing."""
    if not sys.platform.startswith("linux") or os.geteuid() != 0:
        return "needs root on Linux, to make namespaces"
    if sys.prefix == sys.base_prefix:
        return "needs a virtual environment, which the machines share"
    if lacking := [name for name in PROGRAMS if not shutil.which(name, path=SEARCH)]:
        return f"needs {', '.join(lacking)}: apt-get install openssh-server iproute2 rsync"
    made = subprocess.run(
        ["unshare", "--net", "--mount", "--pid", "--fork", "--mount-proc", "true"],
        capture_output=True,
        text=True,
        check=False,
    )
    return f"needs namespaces: {made.stderr.strip()}" if made.returncode else ""


@dataclass(frozen=True)
class Machine:
    """A running machine."""

    name: str
    address: str
    home: Path  # its /srv/home, seen from outside
    process: subprocess.Popen  # parent of its first process
    network: str  # its network namespace, as /proc names it

    def start(self, command: str, log: Path) -> subprocess.Popen:
        """Start a Bash command in the home of the machine; what it says goes to a file outside."""
        environment = {"HOME": HOME, "USER": "root", "TERM": "xterm", "LANG": "C.UTF-8"}
        environment["PATH"] = f"{Path(sys.executable).parent}:{SEARCH}"
        enter = ["nsenter", f"--target={self.process.pid}", "--mount", "--uts", "--ipc", "--net"]
        enter.append(f"--pid=/proc/{self.process.pid}/ns/pid_for_children")
        with log.open("wb") as output:
            return subprocess.Popen(
                [*enter, f"--wdns={HOME}", "bash", "-c", command],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )

    @property
    def alive(self) -> bool:
        """Tell whether it has not been lost."""
        return self.process.poll() is None

    def processes(self) -> dict[int, str]:
        """Return the command line of each process in the machine, by its number outside."""
        return {pid: line for pid, line in processes(self.network) if pid != self.process.pid}

    def lose(self) -> None:
        """End the machine at once, as a power cut would."""
        self.process.kill()  # takes the first process along, and that takes all
        self.process.wait()


def processes(network: str) -> Iterator[tuple[int, str]]:
    """Yield number and command line of each process in a network namespace."""
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it has ended meanwhile
            if str((folder / "ns/net").readlink()) == network:
                line = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode()
                yield int(folder.name), line.strip()


@contextlib.contextmanager
def machines(names: Sequence[str], work: Path) -> Iterator[dict[str, Machine]]:
    """Run machines on one network; each may log in to the others with ~/.ssh/id.

    A name resolves to 127.0.1.1 on its own machine, as on Debian, and nowhere else.

    Args:
        names: Host names.
        work: Empty folder for the files of the machines, `shared` among them.
    """
    prepare(names, work)
    with contextlib.ExitStack() as stack:
        switch = start(["unshare", "--net", "sleep", "infinity"], stack)
        on_switch = ["nsenter", f"--target={switch.pid}", "--net", "ip", "link"]
        await_network(switch)
        call([*on_switch, "add", "bridge", "type", "bridge"])
        call([*on_switch, "set", "bridge", "up"])
        running = {}
        for number, name in enumerate(names, 1):
            address = f"10.77.0.{number}"
            process = boot(name, address, work, stack)
            network = await_network(process)
            end = ["type", "veth", "peer", "name", "eth0", "netns", str(process.pid)]
            call([*on_switch, "add", name, *end])
            call([*on_switch, "set", name, "master", "bridge", "up"])
            running[name] = Machine(name, address, work / name / "home", process, network)
        wait_for("machines are up", lambda: all(map(has_sshd, running.values())), 30)
        yield running
    networks = [machine.network for machine in running.values()]
    wait_for("machines are gone", lambda: not any(any(processes(n)) for n in networks), 30)


def await_network(process: subprocess.Popen) -> str:
    """Wait until a process has left this network namespace, and return the new one."""

    own, other = Path("/proc/self/ns/net"), Path(f"/proc/{process.pid}/ns/net")
    while other.readlink() == own.readlink():
        if process.poll() is not None:
            raise RuntimeError(f"no namespaces: {process.args} ended")
        time.sleep(0.01)
    return str(other.readlink())


def has_sshd(machine: Machine) -> bool:
    """Tell whether a machine is up.

    Raises:
        RuntimeError: If it ended while it started.
    """
    if not machine.alive:
        log = machine.home.parent / "log"
        raise RuntimeError(f"{machine.name} did not start: {log.read_text()}")
    return any("sshd" in line for line in machine.processes().values())


def boot(name: str, address: str, work: Path, stack: contextlib.ExitStack) -> subprocess.Popen:
    """Start the first process of a machine in new namespaces, and return its parent."""
    apart = ["--net", "--mount", "--uts", "--ipc", "--pid", "--mount-proc", "--fork"]
    script = Path(__file__).with_name("machine.sh")
    machine = [str(script), name, address, str(work), sys.prefix]
    with (work / name / "log").open("wb") as log:
        return start(["unshare", *apart, "--kill-child", *machine], stack, stdout=log, stderr=log)


def start(command: Sequence[str], stack: contextlib.ExitStack, **options) -> subprocess.Popen:
    """Start a command that ends with the stack, or with this process if that comes first."""
    process = subprocess.Popen([*WITH_PARENT, *command], stdin=subprocess.DEVNULL, **options)
    stack.callback(process.wait)
    stack.callback(process.send_signal, signal.SIGKILL)
    return process


def prepare(names: Sequence[str], work: Path) -> None:
    """Write the files that machines start with."""
    (work / "shared").mkdir()
    for key in ("id", "host_key"):
        call(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(work / key)])
    users = [
        f"root:x:0:0:root:{HOME}:/bin/bash" if user.startswith("root:") else user
        for user in Path("/etc/passwd").read_text().splitlines()
    ]
    for name in names:
        home, etc = work / name / "home", work / name / "etc"
        for folder in (home / ".ssh", etc, work / name / "tmp"):
            folder.mkdir(parents=True)
        (home / ".bashrc").write_text(BASHRC)
        (home / ".profile").write_text(". ~/.bashrc\n")
        (home / "tarflow-venv").symlink_to(sys.prefix)
        shutil.copy(work / "id", home / ".ssh")
        shutil.copy(work / "id.pub", home / ".ssh/authorized_keys")
        shutil.copy(work / "host_key", etc)
        (etc / "sshd_config").write_text(SSHD)
        (etc / "passwd").write_text("\n".join(users) + "\n")
        (etc / "hosts").write_text(f"127.0.0.1 localhost\n127.0.1.1 {name}\n")
        (etc / "resolv.conf").write_text("nameserver 127.0.0.1\n")  # refuses at once
        home.chmod(0o700)
        (work / name / "tmp").chmod(0o1777)


def call(command: Sequence[str]) -> None:
    """Run a command.

    Raises:
        RuntimeError: If it fails, with what it said.
    """
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    if ended.returncode:
        raise RuntimeError(f"{' '.join(command)}: {ended.stderr.strip()}")


def wait_for(what: str, condition: Callable[[], bool], seconds: float) -> None:
    """Wait until a condition holds, and print how long that took.

    Raises:
        TimeoutError: If it does not hold in time.
    """
    started = time.monotonic()
    while not condition():
        if time.monotonic() > started + seconds:
            raise TimeoutError(f"{what}: not in {seconds:g} s")
        time.sleep(0.1)
    print(f"{time.monotonic() - started:6.1f} s  {what}", flush=True)
