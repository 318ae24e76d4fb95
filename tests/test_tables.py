"""Tables as they are written."""

from vitrail.tables import read_rows, write_table


def test_a_table_is_written_twice(tmp_path):
    text = write_table(tmp_path / "some.name", ["a", "b, c"], [("1", "x"), ("", "é")])
    assert text == "| a | b, c |\n| --- | --- |\n| 1 | x |\n|  | é |\n"
    assert (tmp_path / "some.name.md").read_text(encoding="utf-8") == text
    assert list(read_rows(tmp_path / "some.name.csv")) == [{"a": "1", "b, c": "x"}, {"a": "", "b, c": "é"}]
    assert len(list(tmp_path.iterdir())) == 2
