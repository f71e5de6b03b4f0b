from mpiboot.examples.tables import text_table


def test_tables_have_numbers_to_the_right_and_80_columns():
    text = text_table("Title", ["host", "n"], [["a", "5"], ["b" * 100, "1,234"]])
    assert text.splitlines()[0] == "Title"
    assert [line.split()[-1] for line in text.splitlines() if line.startswith(" a")] == ["5"]
    assert max(map(len, text.splitlines())) <= 80
    assert text.count("b") == 100
