"""What `scripts/lab demo` shows is true: its steps are checks."""

import pytest

from tests.lab import demo


@pytest.mark.long
def test_the_demo_shows_what_it_says(guest):
    said: list[str] = []
    demo.run(guest, said.append)
    shown = "".join(said)
    assert shown.count("=== ") == 7 and "\x1b" not in shown


def test_a_step_that_fails_ends_it(guest):
    shown = demo.Demo(guest, lambda text: None)
    with pytest.raises(demo.DemoFailed, match="ended with status 3"):
        shown.inside("exit 3")
    with pytest.raises(demo.DemoFailed, match="does not say 'b'"):
        shown.inside("echo a", "b")
    with pytest.raises(demo.DemoFailed, match="still says 'a'"):
        shown.inside("echo a", without="a")
