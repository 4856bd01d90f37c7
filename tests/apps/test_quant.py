"""Students in few bits, on one page."""


def test_the_page_has_a_row_for_each_number_of_bits(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    from apps.quant.__main__ import main

    assert main(("gratings",), bits=(4, 2), steps=2, out=tmp_path) == 0
    text = (tmp_path / "report.md").read_text()
    for column in ("fp32", "mse", "gptq", "labels", "teacher"):
        assert column in text
    assert text.count("gratings, ") == 2
    assert all(len(line) <= 80 for line in capsys.readouterr().out.splitlines())
