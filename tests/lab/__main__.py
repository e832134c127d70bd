"""`python -m tests.lab [--no-iommu] -- COMMAND ...`, `... shell` and `... demo`; see scripts/lab."""

import argparse
import os
import shutil
import signal
import sys
import termios

from tests.lab import demo
from tests.lab.demo import DemoFailed
from tests.lab.guest import Guest, GuestError, GuestTimeout
from tests.lab.image import ubuntu_image
from tests.lab.packages import LabUnavailable


def main() -> int:
    """Exit status: the command's; 124 out of time; 125 the lab itself failed."""
    parser = argparse.ArgumentParser(prog="scripts/lab", description=(
        "Boot Debian's kernel in QEMU with an IOMMU and real device models, on this machine's files (read-only; what the "
        "guest writes is gone with it)."))
    parser.add_argument("--no-iommu", action="store_true", help="a machine without IOMMU")
    parser.add_argument("--native-hotplug", action="store_true", help="slots signal as PCIe says, not through ACPI")
    parser.add_argument("--ubuntu", action="store_true", help="Ubuntu's kernel: iommufd, and VFIO without an IOMMU")
    parser.add_argument("--append", default="", metavar="WORDS", help="more for the kernel's command line")
    parser.add_argument("--timeout", type=float, default=600, metavar="S", help="for the command (default %(default)s)")
    parser.add_argument("command", nargs="+", metavar="COMMAND",
                        help="`shell`, `demo`, or after `--` a shell line or a program with its arguments")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    shell = options.command == ["shell"]
    if shell and not sys.stdin.isatty():
        parser.error("shell needs a terminal; use -- COMMAND")
    try:
        with Guest(iommu=not options.no_iommu, acpi_hotplug=not options.native_hotplug, append=options.append,
                   terminal=shell, kernel=ubuntu_image() if options.ubuntu else None) as guest:
            if options.command == ["demo"]:
                return _demo(guest)
            return _shell(guest) if shell else command(guest, options.command, options.timeout)
    except DemoFailed as error:
        print(f"\nrustosd: the demo failed: {error}", file=sys.stderr)
        return 1
    except GuestTimeout:
        print(f"rustosd: out of time after {options.timeout:.0f} s", file=sys.stderr)
        return 124
    except (GuestError, LabUnavailable) as error:
        print(f"rustosd: {error}", file=sys.stderr)
        return 125


def command(guest: Guest, command: list[str], timeout: float) -> int:
    streams = {"stdout": sys.stdout.buffer, "stderr": sys.stderr.buffer}

    def show(name: str, octets: bytes) -> None:
        streams[name].write(octets)
        streams[name].flush()

    status = guest.run(*command, check=False, timeout=timeout, on_output=show).status
    return status if status >= 0 else 128 - status


def _demo(guest: Guest) -> int:
    def say(text: str) -> None:
        print(text, end="", flush=True)

    demo.run(guest, say, colour=sys.stdout.isatty())
    print("\nThat was all of it, and every step did what it should.")
    return 0


def _shell(guest: Guest) -> int:
    """Bash on the guest's virtio console, which QEMU joins with our terminal."""
    before = termios.tcgetattr(sys.stdin)
    size = shutil.get_terminal_size()
    try:
        guest.run(f"stty rows {size.lines} cols {size.columns} </dev/hvc0; TERM={os.environ.get('TERM', 'linux')} "
                  "exec setsid --ctty --wait bash -i </dev/hvc0 >/dev/hvc0 2>&1", check=False, timeout=1e6)
    finally:
        termios.tcsetattr(sys.stdin, termios.TCSADRAIN, before)
    return 0


if __name__ == "__main__":
    sys.exit(main())
