import json

import pytest

from benchmarks.front_picture import drawn
from benchmarks.readme import PAGES, PICTURE, RESULTS, ROOT, filled, markdown


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_pages_show_the_results_as_measured(page):
    text = page.read_text(encoding="utf-8")
    assert filled(text) == text


def test_the_front_page_is_short():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) < 200


def test_the_picture_is_drawn_from_the_results():
    assert drawn(json.loads((RESULTS / "real.json").read_text(encoding="utf-8"))["rows"]) == PICTURE.read_text("utf-8")


def test_every_table_that_was_kept_is_shown():
    shown = "".join(page.read_text(encoding="utf-8") for page in PAGES)
    kept = {path.stem for path in RESULTS.glob("*.json") if isinstance(json.loads(path.read_text()).get("rows"), list)}
    whole = {"real", "real_without_data"}  # summaries of them are shown
    assert {name for name in kept if f"results: {name} " not in shown} <= whole


def test_a_block_is_replaced_and_the_rest_kept(tmp_path):
    rows = [{"net": "a|b", "top-1": 91.5, "bytes": 12345, "drop": None}]
    (tmp_path / "some.json").write_text(json.dumps({"title": "t", "rows": rows}))
    text = filled("before\n<!-- results: some -->\nold\n<!-- end -->\nafter", tmp_path)
    assert text.startswith("before\n<!-- results: some -->\n| net | top-1 | bytes | drop |")
    assert text.endswith("| a\\|b | 91.50 | 12,345 | - |\n<!-- end -->\nafter")


def test_a_missing_result_is_named(tmp_path):
    with pytest.raises(SystemExit, match="absent"):
        filled("<!-- results: absent -->\n<!-- end -->", tmp_path)


def test_small_floats_keep_two_digits():
    assert markdown([{"x": 0.00123}]).endswith("| 0.0012 |")
