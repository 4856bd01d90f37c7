"""`reading`: whatever a damaged file does becomes one of our errors, with its name."""

import pytest

from potstill.core.errors import CheckpointError, ConfigError, DataError, Interrupted, reading


def test_foreign_errors_get_the_name_of_the_file(tmp_path):
    path = tmp_path / "a.json"
    for error in (KeyError("frames"), ValueError("x"), ZeroDivisionError(), RecursionError()):
        said = rf"a.json must be JSON, got {type(error).__name__}"
        with pytest.raises(DataError, match=said), reading(path, "JSON"):
            raise error
    with (
        pytest.raises(CheckpointError, match="a.json must be JSON"),
        reading(path, "JSON", CheckpointError),
    ):
        raise OSError


def test_our_errors_pass_and_get_the_name_where_they_lack_it(tmp_path):
    path = tmp_path / "a.json"
    with pytest.raises(ConfigError, match=r"a.json: lr must be positive"), reading(path, "JSON"):
        raise ConfigError("lr must be positive")
    with pytest.raises(ConfigError, match=r"^a.json is"), reading(path, "JSON"):
        raise ConfigError("a.json is")
    with pytest.raises(Interrupted, match="^stopped$"), reading(path, "JSON"):
        raise Interrupted("stopped", 130)
    with pytest.raises(KeyboardInterrupt), reading(path, "JSON"):
        raise KeyboardInterrupt
