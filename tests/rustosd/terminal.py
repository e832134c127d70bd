"""`rustosctl` as a process of its own, with or without a terminal."""

import fcntl
import os
import pty
import struct
import subprocess
import sys
import termios


def rustosctl_command(*words):
    return [sys.executable, "-c", "from rustosd.cli.control import main; main()", *words]


def on_a_terminal(socket_path, columns, *words, progress=False, **variables):
    """What a command shows on a terminal so wide, with these in its environment; with `progress` its standard error, too."""
    main, peer = pty.openpty()
    fcntl.ioctl(peer, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    environment = {key: value for key, value in os.environ.items() if key not in ("COLUMNS", "NO_COLOR")}
    with subprocess.Popen(rustosctl_command("--socket", socket_path, *words), stdout=peer, stdin=peer,
                          stderr=peer if progress else None,
                          env=environment | {"TERM": "xterm-256color"} | variables) as child:
        os.close(peer)
        shown = b""
        while True:
            try:
                shown += os.read(main, 4096)
            except OSError:     # EIO: the other side is closed
                break
        assert child.wait(60) == 0
    os.close(main)
    return shown.decode().replace("\r", "")
