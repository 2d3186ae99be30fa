"""Table of `make test-versions`, made from a report of pytest."""

from pathlib import Path

from tests.versions import summary, table

REPORT = """<testsuites><testsuite name="pytest">
<testcase classname="a" name="test_shapes[one]"/>
<testcase classname="a" name="test_export[one]"><failure message="x">y</failure></testcase>
<testcase classname="a" name="test_export[two]"><error message="x">y</error></testcase>
<testcase classname="a" name="test_gpu"><skipped message="no GPU"/></testcase>
</testsuite></testsuites>"""


def test_a_row_counts_outcomes_and_names_what_failed(tmp_path: Path):
    path = tmp_path / "report.xml"
    path.write_text(REPORT)
    row, failed = summary("2.6.0", path)
    assert failed
    assert row.startswith("| 2.6.0 | 3.")
    assert row.endswith("| 1 | 2 | 1 | `test_export` (2) |")
    path.write_text(REPORT.replace("failure", "skipped").replace("error", "skipped"))
    row, failed = summary("2.6.0", path)
    assert not failed
    assert row.endswith("| 1 | 0 | 3 | none |")
    assert table([row]).splitlines()[-1] == row
