"""The walls around a sandboxed module, put up from inside: run as `python -s -P -m delivery.walls <job>` by `delivery.sandbox`.

Three processes, one inside the other. The outer one leaves the machine's namespaces; the warden is the first process of the new ones,
builds a file system with nothing in it but the interpreter and the module's folders, and reports which walls stand; the worker gives up
every privilege, takes its limits and runs the module. The warden and the outer one run our code only. When either dies, all of it dies.

The walls that the job calls needed are checked before foreign code runs: when one of them is missing, the worker is not started. When the
process that started this one is killed, all of it dies too.

Everything is done with system calls through ctypes (see namespaces(7), pivot_root(2), mount_setattr(2), capabilities(7)), because the tools
that do the same (bwrap, unshare, nsjail) are not on every machine. Where the kernel or a container refuses namespaces, the walls that
need them are missing and the report says so; a job that needs none of them keeps limits, stripped environment and the change of user.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import json
import os
import resource
import signal
import sys
from pathlib import Path
from typing import Any

NEW_MOUNTS, NEW_HOST_NAME, NEW_IPC, NEW_USERS, NEW_PIDS, NEW_NETWORK = 0x20000, 0x4000000, 0x8000000, 0x10000000, 0x20000000, 0x40000000
NAMESPACES = NEW_MOUNTS | NEW_HOST_NAME | NEW_IPC | NEW_PIDS | NEW_NETWORK
NO_SUID, NO_DEVICES, BIND, RECURSIVE, PRIVATE, DETACH = 2, 4, 4096, 16384, 1 << 18, 2
SYS_MOUNT_SETATTR, AT_FDCWD, AT_RECURSIVE = 442, -100, 0x8000  # the number is the same on all architectures since Linux 5.12
ATTR_READ_ONLY, ATTR_NO_SUID, ATTR_NO_DEVICES = 1, 2, 4
PARENT_DEATH_SIGNAL, SET_DUMPABLE, NO_NEW_PRIVILEGES = 1, 4, 38  # prctl(2)
CAPABILITY_VERSION = 0x20080522
MOST_PROCESSES = 4096
REPORT = "walls"  # first word of the report: without it nobody knows what stood
BROKEN = 70  # exit code when our own part fails, before foreign code runs (EX_SOFTWARE in BSD's sysexits.h)
SMALL, ROOMY = "size=16m,mode=755", "size=1g,mode=1777"
SYSTEM_FOLDERS = ("/usr", "/lib", "/lib32", "/lib64", "/bin", "/etc/ld.so.cache", "/sys/devices/system/cpu")
DEVICES = ("/dev/null", "/dev/zero", "/dev/random", "/dev/urandom")

_libc = ctypes.CDLL(None, use_errno=True)


class _MountAttributes(ctypes.Structure):
    _fields_ = [(name, ctypes.c_uint64) for name in ("attr_set", "attr_clr", "propagation", "userns_fd")]


def main(job: dict[str, Any]) -> int:
    """Exit code of the worker; 128 + n when signal n ended it; `BROKEN` when a needed wall is missing and the worker was not started."""
    die_with(job["parent"])
    walls = ["network", "processes"] if _leave_namespaces() else []
    return _in_child(lambda: _warden(job, walls))


def _warden(job: dict[str, Any], walls: list[str]) -> int:
    """First process behind the walls; no foreign code runs in it, and the worker cannot look into it."""
    _prctl(PARENT_DEATH_SIGNAL, signal.SIGKILL)
    _prctl(SET_DUMPABLE, 0)
    if walls and _new_file_system(Path(job["root"])):
        walls = [*walls, "files"]
    if os.geteuid() != 0 or _may_change_user():
        walls = [*walls, "user"]
    os.write(job["report"], " ".join([REPORT, *walls]).encode())
    os.close(job["report"])
    if not set(job["needed"]) <= set(walls):
        return BROKEN
    return _in_child(lambda: _worker(job, bounded_processes="processes" in walls))


def _worker(job: dict[str, Any], *, bounded_processes: bool) -> int:
    try:
        _drop_privileges(job["nobody"])
        _prctl(PARENT_DEATH_SIGNAL, signal.SIGKILL)
        _take_limits(job["limits"], bounded_processes=bounded_processes)
        module = importlib.import_module(job["module"])
    except Exception as error:
        sys.stderr.write(f"the sandbox is broken: {type(error).__name__}: {error}\n")
        return BROKEN
    module.main(Path(job["root"]) / "in", Path(job["root"]) / "out")
    return 0


def _in_child(work: Any) -> int:
    """Runs `work` in a forked child and returns its exit code; reaps whatever else ends meanwhile, as a first process must."""
    child = os.fork()
    if child == 0:
        os._exit(_guarded(work))
    while True:
        ended, status = os.wait()
        if ended == child:
            code = os.waitstatus_to_exitcode(status)
            return 128 - code if code < 0 else code


def _guarded(work: Any) -> int:
    try:
        return int(work())
    except BaseException as error:
        sys.stderr.write(f"{type(error).__name__}: {error}\n"[:2000])
        return 1
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()


def _leave_namespaces() -> bool:
    """As root at once; as anybody else by way of a user namespace of one user."""
    user, group = os.geteuid(), os.getegid()
    if user == 0 and _libc.unshare(NAMESPACES) == 0:
        return True
    if _libc.unshare(NAMESPACES | NEW_USERS) != 0:
        return False
    try:
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"{user} {user} 1")
        Path("/proc/self/gid_map").write_text(f"{group} {group} 1")
    except OSError:
        return True  # the network is gone all the same; what needs the mapping fails later and is reported there
    return True


def _new_file_system(work: Path) -> bool:
    """Builds the new root below `work`/root and moves into it; False when the kernel refuses a step, and then nothing has changed."""
    try:
        _check(_libc.mount(None, b"/", None, RECURSIVE | PRIVATE, None))
        new = work / "root"
        _build(new, work)
    except OSError as error:
        sys.stderr.write(f"sandbox: no file system of its own: {error}\n")
        return False
    os.chdir(new)
    _check(_libc.pivot_root(b".", b"."))
    _check(_libc.umount2(b".", DETACH))
    os.chdir("/")
    _read_only(Path("/"), recursive=False)
    return True


def _build(new: Path, work: Path) -> None:
    _file_system("tmpfs", new, SMALL)
    for name in ("tmp", "dev", "proc"):
        (new / name).mkdir(mode=0o755)
    _file_system("tmpfs", new / "tmp", ROOMY)
    for path in _readable():
        _show(path, new)
    _show(work / "in", new)
    _show(work / "out", new, writable=True)
    for device in DEVICES:
        _show(Path(device), new, writable=True)
    (new / "dev/shm").mkdir()
    _file_system("tmpfs", new / "dev/shm", ROOMY)
    with contextlib.suppress(OSError):  # refused where a container hides parts of /proc; nothing needs it
        _file_system("proc", new / "proc", "")


def _readable() -> list[Path]:
    """System libraries, the interpreter, its packages and ours, each under the name we use and the name that it resolves to."""
    own = [sys.prefix, sys.base_prefix, sys.base_exec_prefix, str(Path(__file__).parent)]
    names = {Path(each) for each in own} | {Path(each).resolve() for each in own} | {Path(each) for each in SYSTEM_FOLDERS}
    return [each for each in sorted(names) if each.exists() and not any(parent in names for parent in each.parents)]


def _show(path: Path, new: Path, *, writable: bool = False) -> None:
    """The same file or folder at the same path below the new root."""
    target = new / path.relative_to("/")
    target.parent.mkdir(parents=True, exist_ok=True)
    if path.is_symlink():
        target.symlink_to(os.readlink(path))
        return
    target.mkdir(exist_ok=True) if path.is_dir() else target.touch()
    _check(_libc.mount(bytes(path), bytes(target), None, BIND | RECURSIVE, None))
    if not writable:
        _read_only(target)


def _file_system(kind: str, target: Path, options: str) -> None:
    _check(_libc.mount(kind.encode(), bytes(target), kind.encode(), NO_SUID | NO_DEVICES, options.encode()))


def _read_only(path: Path, *, recursive: bool = True) -> None:
    flags = ATTR_READ_ONLY | ATTR_NO_SUID | ATTR_NO_DEVICES
    attributes = _MountAttributes(attr_set=flags)
    size = ctypes.sizeof(attributes)
    _check(_libc.syscall(SYS_MOUNT_SETATTR, AT_FDCWD, bytes(path), AT_RECURSIVE if recursive else 0, ctypes.byref(attributes), size))


def _may_change_user() -> bool:
    """Root of the machine may; root of a user namespace with one user has nobody to change to."""
    inner, outer, count = Path("/proc/self/uid_map").read_text().split()[:3]
    return (inner, outer) == ("0", "0") and int(count) > 1


def _drop_privileges(nobody: int) -> None:
    """Root becomes nobody, which clears its capabilities; anybody else gives up those of the user namespace."""
    if os.geteuid() == 0 and _can_become(nobody):
        return
    header = (ctypes.c_uint32 * 2)(CAPABILITY_VERSION, 0)
    _check(_libc.capset(header, (ctypes.c_uint32 * 6)()))
    _check(_libc.prctl(NO_NEW_PRIVILEGES, 1, 0, 0, 0))


def _can_become(nobody: int) -> bool:
    try:
        os.setgroups([])
        os.setresgid(nobody, nobody, nobody)
        os.setresuid(nobody, nobody, nobody)
    except OSError:
        return False
    _check(_libc.prctl(NO_NEW_PRIVILEGES, 1, 0, 0, 0))
    return True


def _take_limits(limits: dict[str, Any], *, bounded_processes: bool) -> None:
    wanted = {
        resource.RLIMIT_AS: limits["memory_bytes"],
        resource.RLIMIT_CPU: limits["cpu_s"],
        resource.RLIMIT_FSIZE: limits["file_bytes"],
        resource.RLIMIT_NOFILE: limits["open_files"],
        resource.RLIMIT_CORE: 0,
    }
    if bounded_processes:
        wanted[resource.RLIMIT_NPROC] = MOST_PROCESSES
    for which, most in wanted.items():
        hard = resource.getrlimit(which)[1]
        least = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(which, (least, least))


def die_with(parent: int) -> None:
    """The kernel kills this process when its parent dies, across exec; at once when `parent` is dead. Allowed between fork and exec."""
    _prctl(PARENT_DEATH_SIGNAL, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(BROKEN)


def _prctl(option: int, value: int) -> None:
    _check(_libc.prctl(option, value, 0, 0, 0))


def _check(result: int) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


if __name__ == "__main__":
    sys.exit(main(json.loads(sys.argv[1])))
