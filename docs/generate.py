"""Write docs/man/ and docs/rpc.md anew from the commands and types: python -m docs.generate [--check]."""

import sys
from pathlib import Path

from docs import manual, reference

HERE = Path(__file__).parent


def documents() -> dict[Path, str]:
    """Every generated file and what it should say."""
    return {HERE / "man/rustosctl.1": manual.rustosctl(), HERE / "man/rustosd.8": manual.rustosd(),
            HERE / "rpc.md": reference.markdown()}


def main() -> int:
    """Write what differs; with --check only say so. 1 if something differed."""
    stale = {path: text for path, text in documents().items() if not path.exists() or path.read_text() != text}
    for path, text in stale.items():
        print(f"{path.name}: {'out of date' if '--check' in sys.argv else 'written'}")
        if "--check" not in sys.argv:
            path.parent.mkdir(exist_ok=True)
            path.write_text(text)
    return int(bool(stale) and "--check" in sys.argv)


if __name__ == "__main__":
    sys.exit(main())
