"""Workers on two machines find each other where host names resolve to a loopback address."""

import contextlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tarflow.distributed import address_towards, connect_through, interface_of

SETTINGS = "GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"
WORKER = """
import torch
from torch import distributed as dist
from tarflow.distributed import process_group, rank

with process_group():
    value = torch.full((1,), 1.0 + rank())
    dist.all_reduce(value)
    print(value.item())
"""


def addresses():
    """Return the first IPv4 address of each interface, by name."""
    listed = subprocess.run(["ip", "-j", "-4", "addr"], capture_output=True, text=True, check=True)
    return {link["ifname"]: link["addr_info"][0]["local"] for link in json.loads(listed.stdout)}


def test_the_interface_is_the_one_that_has_the_address(monkeypatch):
    for name in SETTINGS:
        monkeypatch.delenv(name, raising=False)
    for name, address in addresses().items():
        assert interface_of(address) == name
    assert interface_of("192.0.2.77") == ""
    connect_through("192.0.2.77")
    connect_through("127.0.0.1")  # other machines do not reach it
    assert not {*SETTINGS} & os.environ.keys()
    assert address_towards("127.0.0.1") == "127.0.0.1"
    assert address_towards("no.such.host.invalid") == ""


def test_settings_of_the_user_win(monkeypatch):
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "mine")
    monkeypatch.delenv("NCCL_SOCKET_IFNAME", raising=False)
    monkeypatch.setattr("tarflow.distributed.interface_of", {"10.0.0.1": "eth1"}.get)
    connect_through("10.0.0.1")
    assert [os.environ[name] for name in SETTINGS] == ["mine", "=eth1"]


@contextlib.contextmanager
def two_machines(folder):
    """Yield two network namespaces joined by a cable, whose host names resolve to loopback."""
    names = [f"tarflow-{os.getpid()}-{rank}" for rank in range(2)]
    cables = [f"tf{os.getpid()}{rank}" for rank in range(2)]
    made = []

    def ip(*arguments):
        return subprocess.run(["ip", *arguments], capture_output=True, text=True)

    try:
        for name in names:
            if ip("netns", "add", name).returncode:
                pytest.skip("no permission to make network namespaces")
            made.append(name)
        ip("link", "add", cables[0], "type", "veth", "peer", "name", cables[1])
        for rank, (name, cable) in enumerate(zip(names, cables, strict=True)):
            ip("link", "set", cable, "netns", name)
            ip("-n", name, "addr", "add", f"10.98.0.{rank + 1}/24", "dev", cable)
            for link in ("lo", cable):
                ip("-n", name, "link", "set", link, "up")
            (folder / f"hosts{rank}").write_text(f"127.0.0.1 localhost\n127.0.1.1 machine{rank}\n")
        yield names
    finally:
        for name in made:
            ip("netns", "del", name)


def test_workers_on_two_machines_with_loopback_host_names_connect(tmp_path):
    environment = os.environ | {"WORLD_SIZE": "2", "MASTER_ADDR": "10.98.0.1"}
    environment |= {"MASTER_PORT": "29511", "PYTHONPATH": str(Path(__file__).parents[1])}
    for name in SETTINGS:
        environment.pop(name, None)
    with two_machines(tmp_path) as machines:
        workers = []
        for rank, machine in enumerate(machines):
            setup = f"hostname machine{rank}; mount --bind {tmp_path}/hosts{rank} /etc/hosts"
            inside = ["unshare", "--uts", "--mount", "sh", "-c", f'{setup}; exec "$0" "$@"']
            workers.append(
                subprocess.Popen(
                    ["ip", "netns", "exec", machine, *inside, sys.executable, "-c", WORKER],
                    env=environment | {"RANK": str(rank)},
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    text=True,
                )
            )
        try:
            printed = [worker.communicate(timeout=60) for worker in workers]
        finally:
            for worker in workers:
                worker.kill()
                worker.communicate()
    assert [out for out, _ in printed] == ["3.0\n", "3.0\n"], printed
