"""What is too much for the host's memory is refused, so that it can be told; see also test_failed_step."""

import resource
import sys

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sasr import host_memory
from sasr.out_of_memory import is_out_of_memory

MIB = 2**20
UNBOUNDED = resource.getrlimit(resource.RLIMIT_DATA)
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the system has no such limit")


def machine(folder, total=1000, available=600, swap=0, groups="0::/\n"):
    """A /proc, in MiB."""
    (folder / "self").mkdir(parents=True)
    sizes = {"MemTotal": total, "MemFree": 1, "MemAvailable": available, "SwapFree": swap}
    (folder / "meminfo").write_text("".join(f"{name}:   {1024 * size} kB\n" for name, size in sizes.items()))
    (folder / "self/cgroup").write_text(groups)
    return folder


def group(folder, limit, used, inactive=0, active=0, old=False):
    """A control group's files, in MiB."""
    folder.mkdir(parents=True, exist_ok=True)
    names = ("memory.limit_in_bytes", "memory.usage_in_bytes") if old else ("memory.max", "memory.current")
    for name, size in zip(names, (limit, used), strict=True):
        (folder / name).write_text(f"{size if size == 'max' else MIB * size}\n")
    prefix = "total_" if old else ""
    stat = f"anon 5\n{prefix}inactive_file {MIB * inactive}\n{prefix}active_file {MIB * active}\n"
    (folder / "memory.stat").write_text(stat)


def test_the_machines_memory_and_its_swap(tmp_path):
    proc = machine(tmp_path / "proc", total=1000, available=600, swap=50)
    assert host_memory.available(proc, tmp_path / "none") == (600 + 50 - 20) * MIB


@pytest.mark.parametrize(
    ("line", "place", "old"),
    [
        ("0::/job\n", "job", False),
        ("0::/user/job/step\n", "user", False),  # the limit of a group above counts
        ("0::/docker/4f\n", "", False),  # the host's path; what is mounted is the container's
        ("3:cpuset:/x\n4:memory:/job\n0::/\n", "memory/job", True),
    ],
)
def test_the_limit_of_a_container(tmp_path, line, place, old):
    proc = machine(tmp_path / "proc", groups=line)
    group(tmp_path / "cgroup" / place, limit=300, used=250, inactive=30, active=7, old=old)
    assert host_memory.available(proc, tmp_path / "cgroup") == 87 * MIB


def test_a_container_without_a_limit_or_with_a_larger_one(tmp_path):
    proc = machine(tmp_path / "proc", groups="0::/a/b\n")
    group(tmp_path / "cgroup/a", limit="max", used=250)
    assert host_memory.available(proc, tmp_path / "cgroup") == 580 * MIB
    group(tmp_path / "cgroup/a/b", limit=5000, used=250)
    assert host_memory.available(proc, tmp_path / "cgroup") == 580 * MIB


def test_where_the_system_does_not_tell(tmp_path, monkeypatch):
    assert host_memory.available(tmp_path) is None
    monkeypatch.setattr(host_memory, "available", lambda: None)
    with host_memory.bounded("cpu"):
        assert resource.getrlimit(resource.RLIMIT_DATA) == UNBOUNDED


@given(st.integers(0, 100), st.integers(0, 1000), st.integers(0, 1000))
def test_never_less_than_nothing(tmp_path_factory, free, limit, used):
    folder = tmp_path_factory.mktemp("m")
    proc = machine(folder / "proc", available=free)
    group(folder / "cgroup", limit=limit, used=used)
    assert host_memory.available(proc, folder / "cgroup") == MIB * max(0, min(free - 20, limit - used))


def test_what_is_too_much_is_refused_and_what_is_not_is_given(monkeypatch):
    monkeypatch.setattr(host_memory, "available", lambda: 512 * MIB)
    with host_memory.bounded(torch.device("cpu", 0)):
        torch.empty(200 * MIB, dtype=torch.int8)
        with pytest.raises(RuntimeError) as caught:
            torch.empty(1024 * MIB, dtype=torch.int8)
        assert is_out_of_memory(caught.value)
        monkeypatch.setattr(host_memory, "available", lambda: 2048 * MIB)  # another program has ended
        host_memory.renew()
        torch.empty(1024 * MIB, dtype=torch.int8)
    assert resource.getrlimit(resource.RLIMIT_DATA) == UNBOUNDED
    host_memory.renew()
    assert resource.getrlimit(resource.RLIMIT_DATA) == UNBOUNDED


def test_memory_that_another_program_takes_for_a_moment_is_not_lost(monkeypatch):
    def bound(free):
        monkeypatch.setattr(host_memory, "available", lambda: free * MIB)
        host_memory.renew()
        return resource.getrlimit(resource.RLIMIT_DATA)[0]

    with host_memory.bounded("cpu"):
        most = bound(2**30)
        assert [bound(512) for _ in range(19)] == [most] * 19
        assert bound(512) < most


def test_an_accelerators_driver_is_left_alone():
    with host_memory.bounded("cuda:0"):
        assert resource.getrlimit(resource.RLIMIT_DATA) == UNBOUNDED


def test_a_limit_of_ones_own_stays(monkeypatch):
    own = 2**40, UNBOUNDED[1]
    monkeypatch.setattr(host_memory, "available", lambda: 2**50)
    resource.setrlimit(resource.RLIMIT_DATA, own)
    try:
        with host_memory.bounded("cpu"):
            assert resource.getrlimit(resource.RLIMIT_DATA) == own
            host_memory.release()  # and once more at the end
        assert resource.getrlimit(resource.RLIMIT_DATA) == own
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, UNBOUNDED)
