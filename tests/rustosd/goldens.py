"""What commands print, kept as files. RUSTOSD_GOLDEN=write writes them anew; look at the difference before you keep it."""

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

GOLDEN = Path(__file__).with_name("golden")


def reads_as_promised(rustosctl: Callable[..., tuple[int, str, str]], name: str, words: Sequence[Any], *, status: int = 0,
                      settle: Callable[[str], str] = str) -> None:
    """A command's text and its JSON are what the files of this name have; `settle` takes out what differs from run to run."""
    for suffix, option in ((".txt", ()), (".json", ("--json",))):
        ended, out, err = rustosctl(*words, *option)
        assert (ended, err) == (status, "")
        out, file = settle(out), GOLDEN / (name + suffix)
        if os.environ.get("RUSTOSD_GOLDEN") == "write":
            file.write_text(out)
        assert out == file.read_text()
        if option:
            assert json.loads(out)["schema"] == 1
