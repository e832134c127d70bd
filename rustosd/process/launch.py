"""Starts a program under a filter: fork, its own network namespace, other rights if asked for, the filter, exec."""

import contextlib
import ctypes
import errno
import fcntl
import grp
import os
import pwd
import select
import signal
import socket
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from rustosd.process import syscalls as nr

CLONE_NEWUSER: Final = 0x1000_0000
CLONE_NEWNET: Final = 0x4000_0000
_PR_SET_PDEATHSIG, _PR_SET_NO_NEW_PRIVS, _PR_SET_CHILD_SUBREAPER, _PR_SET_THP_DISABLE = 1, 38, 36, 41
_SECCOMP_SET_MODE_FILTER: Final = 1
_NEW_LISTENER: Final = 1 << 3
_SIOCSIFFLAGS, _SIOCSIFADDR, _IFF_UP = 0x8914, 0x8916, 1
_CANNOT_EXECUTE, _NOT_FOUND = 126, 127      # exit statuses, as shells have them
_REPORT_OCTETS: Final = 4096
_DESCRIPTORS: Final = struct.Struct("=ii")       # the filter's listener, a socket in the network
_ATTEND_MS: Final = 5
_SUPERVISED: Final = ("a supervisor has a seccomp listener on this process already (a container runtime, or another "
                      "rustosctl run), and the kernel allows one; run it outside of that")


class LaunchFailed(Exception):
    """The program was not started; the message says what to do, `status` is what a shell would end with."""

    def __init__(self, message: str, status: int = 1) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True)
class Program:
    """What to run, and as whom."""

    argv: Sequence[str]
    environment: Mapping[str, str] = field(default_factory=lambda: dict(os.environ))
    directory: str | None = None
    user: str | None = None                 # None: as we are
    own_network: bool = True                # a network namespace of its own: what we do not answer reaches nobody
    huge_pages: bool = True                 # whether the kernel may use them on its own
    addresses: Sequence[str] = ()           # what that namespace shows as the host's
    policy: str = ""                        # one more that it is under


@dataclass
class Started:
    """A program that has not run an instruction yet. `go` lets it, `LaunchFailed` says that it could not be executed."""

    pid: int
    listener: int                           # of the filter; ours to close
    network: int                            # a socket of Linux's in its network; ours to close
    _gate: int
    _report: int

    def go(self, attend: Callable[[], None] = lambda: None) -> None:
        """Let it be executed; `attend` is called while that takes its time. Raises LaunchFailed."""
        os.write(self._gate, b"x")
        os.close(self._gate)
        with os.fdopen(self._report, "rb", buffering=0) as report:
            told_yet = select.poll()
            told_yet.register(report, select.POLLIN)
            while not told_yet.poll(_ATTEND_MS):
                attend()
            told = report.read(_REPORT_OCTETS)
        if told:
            os.kill(self.pid, signal.SIGKILL)       # it may stand at a signal, traced
            with contextlib.suppress(ChildProcessError):
                while os.WIFSTOPPED(os.waitpid(self.pid, 0)[1]):
                    pass
            _raise(told)


def launch(program: Program, filtering: bytes, output: int = -1) -> Started:
    """Fork a child that waits behind its filter. `output`: its standard output and error; -1: ours. Raises LaunchFailed."""
    nr.check_machine()
    identity = identity_of(program.user)
    report, child_report = os.pipe()        # close-on-exec: read to its end when the program runs
    child_gate, gate = os.pipe()
    nr.prctl(_PR_SET_CHILD_SUBREAPER, 1)    # what the program leaves behind comes to us, not to init
    parent = os.getpid()
    pid = os.fork()
    if pid == 0:
        os.close(report)
        os.close(gate)                  # else it would never hear that we are gone
        _child(program, identity, filtering, parent, child_report, child_gate, output)
    os.close(child_report)
    os.close(child_gate)
    try:
        first = os.read(report, _REPORT_OCTETS)
        if len(first) != _DESCRIPTORS.size:
            _raise(first)
        process = os.pidfd_open(pid)
        try:
            listener, network = (_take_descriptor(process, number) for number in _DESCRIPTORS.unpack(first))
        finally:
            os.close(process)
    except BaseException:
        os.close(report)
        os.close(gate)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        raise
    return Started(pid, listener, network, gate, report)


def _take_descriptor(process: int, number: int) -> int:
    """A duplicate of another process's descriptor (pidfd_getfd(2))."""
    return nr.call(438, process, number, 0)


def _child(program: Program, identity: pwd.struct_passwd | None, filtering: bytes, parent: int, report: int, gate: int,
           output: int) -> None:
    """Everything between fork and exec. Never returns."""
    try:
        nr.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)     # without its supervisor none of its sockets would be answered
        if os.getppid() != parent:
            os._exit(1)
        if output >= 0:
            os.dup2(output, 1)
            os.dup2(output, 2)
        if not program.huge_pages:
            nr.prctl(_PR_SET_THP_DISABLE, 1)
        if program.own_network:
            _enter_network()
            _show(program.addresses)
        if identity is not None:
            os.setgroups(os.getgrouplist(identity.pw_name, identity.pw_gid))
            os.setgid(identity.pw_gid)
            os.setuid(identity.pw_uid)
            nr.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)     # a change of identity clears it
        if program.directory is not None:
            _enter_directory(program.directory)
        for number in (signal.SIGPIPE, signal.SIGXFSZ, signal.SIGINT, signal.SIGQUIT):      # Python's, and ours
            signal.signal(number, signal.SIG_DFL)
        network = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        listener = _install(filtering)
        os.write(report, _DESCRIPTORS.pack(listener, network.fileno()))
        if not os.read(gate, 1):
            os._exit(1)                 # nobody lets it go
        os.close(listener)
        network.close()
        if not program.argv[0]:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
        os.execvpe(program.argv[0], list(program.argv), dict(program.environment))
    except BaseException as error:
        number = error.errno if isinstance(error, OSError) and error.errno else errno.EINVAL
        what = getattr(error, "what", None)
        status = _NOT_FOUND if number == errno.ENOENT and what is None else _CANNOT_EXECUTE
        what = what or f"{program.argv[0] or repr('')}: {os.strerror(number)}"
        os.write(report, struct.pack("=ii", status, number) + os.fsencode(what)[:2000])
    finally:
        os._exit(1)


def _enter_directory(path: str) -> None:
    try:
        os.chdir(path)
    except OSError as error:
        error.what = f"{path}: {error.strerror}"
        raise


def _enter_network() -> None:
    """A network namespace; without the right to make one, inside a user namespace in which we are who we are."""
    user, group = os.geteuid(), os.getegid()
    try:
        nr.unshare(CLONE_NEWNET)
        return
    except PermissionError:
        pass
    try:
        nr.unshare(CLONE_NEWUSER | CLONE_NEWNET)
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"{user} {user} 1")
        Path("/proc/self/gid_map").write_text(f"{group} {group} 1")
    except OSError as error:
        error.what = (f"no network namespace for the program: {error.strerror}; be root, allow user namespaces "
                      "(sysctl kernel.unprivileged_userns_clone, user.max_user_namespaces), or say --host-network")
        raise


def _show(addresses: Sequence[str]) -> None:
    """Let getifaddrs(3) find the stack's addresses, on the loopback interface: nothing else is there, and nothing uses them.

    getaddrinfo(3) looks for no IPv6 addresses on a host that has none of its own (AI_ADDRCONFIG).
    """
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as four, socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as six:
        try:
            fcntl.ioctl(four, _SIOCSIFFLAGS, struct.pack("16sH22x", b"lo", _IFF_UP))
        except PermissionError as error:        # the network is ours: so the socket is none of Linux's
            error.what = _SUPERVISED
            raise
        for index, address in enumerate(addresses):
            if ":" in address:
                octets = socket.inet_pton(socket.AF_INET6, address)
                with contextlib.suppress(OSError):      # a kernel without IPv6
                    fcntl.ioctl(six, _SIOCSIFADDR, struct.pack("=16sIi", octets, 128, socket.if_nametoindex("lo")))
            else:
                name = struct.pack("=HH4s8x", socket.AF_INET, 0, socket.inet_aton(address))
                fcntl.ioctl(four, _SIOCSIFADDR, struct.pack("16s16s8x", f"lo:{index}".encode(), name))


def _install(filtering: bytes) -> int:
    """Put the filter on this thread and all it starts; the listener."""
    nr.prctl(_PR_SET_NO_NEW_PRIVS, 1)
    code = ctypes.create_string_buffer(filtering, len(filtering))
    program = ctypes.create_string_buffer(struct.pack("=H6xQ", len(filtering) // 8, ctypes.addressof(code)))
    try:
        return nr.call(nr.SECCOMP, _SECCOMP_SET_MODE_FILTER, _NEW_LISTENER, ctypes.addressof(program))
    except OSError as error:
        if error.errno == errno.EBUSY:
            error.what = _SUPERVISED
        raise


def identity_of(name: str | None) -> pwd.struct_passwd | None:
    """Whom the program is to be; None: who we are. Raises LaunchFailed."""
    if name is None:
        return None
    try:
        found = pwd.getpwuid(int(name)) if name.isdigit() else pwd.getpwnam(name)
    except KeyError:
        raise LaunchFailed(f"there is no user {name}") from None
    if found.pw_uid == os.geteuid():
        return None
    if os.geteuid():
        raise LaunchFailed(f"only root can run a program as another user ({grp.getgrgid(found.pw_gid).gr_name}/{name})")
    return found


def _raise(told: bytes) -> None:
    if len(told) < 8:
        raise LaunchFailed("the program's process died before it began")
    status, _ = struct.unpack_from("=ii", told)
    raise LaunchFailed(told[8:].decode(errors="replace"), status)
