"""The chapter on new tissues says what the schema knows and what a check answers."""

import json
import re
from importlib import resources
from pathlib import Path

import pytest

from helpers import new_tissue

CHAPTER = Path(__file__).resolve().parent.parent / "book" / "new-tissue.md"


def test_chapter_names_every_key():
    schema = resources.files("helpers") / "resources" / "tissue.schema.json"
    known = json.loads(schema.read_text(encoding="utf-8"))
    sample = known["definitions"]["biosample"]["properties"]
    named = set(re.findall(r"`(\w+)`", CHAPTER.read_text(encoding="utf-8")))
    assert set(known["properties"]) | set(sample) <= named


def test_chapter_shows_what_a_check_says(tmp_path):
    path = new_tissue.write_template("heart", tmp_path)
    text = path.read_text(encoding="utf-8")
    for right, wrong in (
        ("assembly: hg38", "asembly: hg38"),
        ("signal_kind: coverage          #", "signal_kind: cuts #"),
        ("scale: 1.0                     #", "scale: -1 #"),
    ):
        assert right in text
        text = text.replace(right, wrong)
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match="4 problems") as caught:
        new_tissue.check(path)
    shown = re.search(r"```text\n(.*?)```", CHAPTER.read_text("utf-8"), re.DOTALL)
    assert shown[1].splitlines()[1:] == str(caught.value).splitlines()[1:]
