"""Generated documents: up to date with the code, and taken by the programs that read them."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from docs import generate, reference
from rustosd.control.protocol import METHODS

ROOT = Path(__file__).resolve().parent.parent
PAGES = ("rustosctl.1", "rustosd.8")


@pytest.mark.parametrize("name", ["rustosctl.1", "rustosd.8", "rpc.md"])
def test_it_says_what_the_code_does(name):
    (path,) = [path for path in generate.documents() if path.name == name]
    assert path.read_text() == generate.documents()[path], "make it anew: python -m docs.generate"


def test_every_method_is_described_with_who_may_call_it():
    text = (ROOT / "docs/rpc.md").read_text()
    for method in METHODS.values():
        section = text.partition(f"### {method.name}\n")[2].partition("\n### ")[0]
        assert method.help in section and f"*{reference.RIGHTS[method.right]}*" in section, method.name
    described = re.findall(r"^### ([a-z]+\.[a-z]+)$", text, re.MULTILINE)
    assert described == sorted(METHODS)
    links = set(re.findall(r"\]\(#([a-z]+)\)", text))
    assert links <= {title.lower() for title in re.findall(r"^### (\w+)$", text, re.MULTILINE)}


def test_the_examples_are_what_happens():
    text = (ROOT / "docs/rpc.md").read_text()
    pairs = re.findall(r"^    --> (.+)\n    <-- (.+)$", text, re.MULTILINE)
    assert len(pairs) == len(reference.EXAMPLES)
    for (line, reply), (peer, _, _) in zip(pairs, reference.EXAMPLES, strict=True):
        request = json.loads(line)
        assert request.pop("jsonrpc") == "2.0"
        assert reference.exchange(request, peer)[1] == reply


@pytest.mark.skipif(not shutil.which("man"), reason="man is not installed: scripts/test installs it")
@pytest.mark.parametrize("page", PAGES)
def test_man_has_nothing_to_warn_of(page):
    done = subprocess.run(["man", "-l", "--warnings", "-E", "UTF-8", ROOT / "docs/man" / page], capture_output=True, text=True,
                          timeout=60, env={"PATH": "/usr/bin:/bin", "MANWIDTH": "80", "LC_ALL": "C.UTF-8"})
    assert done.returncode == 0 and done.stderr == ""
    assert max(map(len, done.stdout.splitlines())) <= 80


@pytest.mark.skipif(not shutil.which("mandoc"), reason="mandoc is not installed: scripts/test installs it")
@pytest.mark.parametrize("page", PAGES)
def test_mandoc_has_nothing_to_warn_of(page):
    done = subprocess.run(["mandoc", "-T", "lint", "-W", "warning", ROOT / "docs/man" / page], capture_output=True, text=True,
                          timeout=60)
    assert done.stdout + done.stderr == ""
