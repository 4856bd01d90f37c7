import pytest

from potstill.core.files import atomic


def test_replaces_in_one_step_and_keeps_the_suffix(tmp_path):
    target = tmp_path / "deep" / "rows.csv"
    with atomic(target) as temporary:
        temporary.write_text("new")
        assert temporary.suffix == ".csv"
        assert not target.exists()
    assert target.read_text() == "new"
    assert [p.name for p in target.parent.iterdir()] == ["rows.csv"]


def test_an_exception_leaves_the_old_file_and_nothing_else(tmp_path):
    target = tmp_path / "rows.csv"
    target.write_text("old")

    def interrupted():
        with atomic(target) as temporary:
            temporary.write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert target.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["rows.csv"]
