"""Tables as they are written."""

from vitrail.tables import is_whole, read_rows, write_table


def test_a_table_is_written_twice(tmp_path):
    text = write_table(tmp_path / "some.name", ["a", "b, c"], [("1", "x"), ("", "é")])
    assert text == "| a | b, c |\n| --- | --- |\n| 1 | x |\n|  | é |\n"
    assert (tmp_path / "some.name.md").read_text(encoding="utf-8") == text
    assert list(read_rows(tmp_path / "some.name.csv")) == [{"a": "1", "b, c": "x"}, {"a": "", "b, c": "é"}]
    assert len(list(tmp_path.iterdir())) == 2


def test_whole_numbers_have_up_to_nine_digits():
    cells = ["0", "007", "999999999", "1000000000", "9" * 5000, "", "-1", "1.0", " 1", "\u00b2", "a"]
    assert [cell for cell in cells if is_whole(cell)] == ["0", "007", "999999999"]
