"""[[program]]: what is wrong with one, and what a reload says of it."""

import pytest

from rustosd import config, config_changes
from rustosd.config import ConfigError

ONE = "[[program]]\nname = 'a'\ncommand = ['true']\n"


@pytest.mark.parametrize(("text", "why"), [
    ("[[program]]\nname = 'a'\n", r"x:1: .*lacks command"), ("[[program]]\nname = 'a'\ncommand = []\n", r"x:3: .*length >= 1"),
    ("[[program]]\nname = 'a'\ncommand = ['']\n", r"x:3: .*is empty"),
    ("[[program]]\nname = '12'\ncommand = ['x']\n", r"x:2: "),
    ('[[program]]\nname = "x\\n"\ncommand = ["x"]\n', r"x:2: "),
    ("[[program]]\nname = '../x'\ncommand = ['x']\n", r"x:2: "),
    (ONE + ONE, r"x:5: .*another program already"),
    (ONE + "after = ['b']\n", r"x:4: .*no program b; there is rustos0"),
    (ONE + "after = ['a']\n", r"x:4: .*waits for itself"),
    (ONE + "after = ['b']\n[[program]]\nname = 'b'\ncommand = ['x']\nafter = ['a']\n", r"x:4: .*waits for itself"),
    (ONE + "policy = 'p'\n", r"x:4: .*there is no policy p; there is none"),
    (ONE + "restart = 'maybe'\n", r"x:4: .*one of no, on"),
    (ONE + "memory = '1M'\n", r"x:4: .*at least 4M"), (ONE + "memory = 'much'\n", r"x:4: .*no amount of octets"),
    (ONE + "memory_max = '8M'\n", r"x:4: .*goes with memory"),
    (ONE + "memory = '8M'\nmemory_max = '8M'\n", r"x:5: .*8M is not more than memory 8M"),
    ("[[program]]\nname = 'rustos0'\ncommand = ['x']\n", r"x:2: .*the name of an interface"),
    (ONE + "stop_s = 61\n", r"x:4: "), (ONE + "environment = { 'A=B' = 'x' }\n", r"x:4: "),
    (ONE + "directory = 'x'\n", r"x:4: "),
])
def test_mistakes_name_their_line(text, why):
    with pytest.raises(ConfigError, match=why):
        config.parse(text, "x")


def test_all_of_it_is_read_and_written():
    text = ONE + ("after = ['rustos0', 'b']\nuser = 'nobody'\ndirectory = '/tmp'\nrestart = 'always'\npolicy = 'p'\n"
                  "environment = { A = '1' }\n[[program]]\nname = 'b'\ncommand = ['x', '']\n[[policy]]\nname = 'p'\n")
    parsed = config.parse(text, "x")
    assert config.parse(config.to_toml(parsed), "y") == parsed
    assert parsed.program[0].after == ("rustos0", "b") and parsed.program[1].restart == "on-failure"


def test_secrets_of_the_environment_are_not_said():
    text = ONE + "environment = {{ DB_PASSWORD = '{}', LANG = 'C' }}\n"
    old, new = (config.parse(text.format(word), "x") for word in ("x1x", "x2x"))
    (change,) = config_changes.differences(config_changes.flatten(old), config_changes.flatten(new))
    assert change.rule.step == "programs"
    assert config_changes.spoken(change.path, change.new) == "DB_PASSWORD = (hidden), LANG = C"
    assert "x2x" not in config.to_toml(new, secrets=False)
