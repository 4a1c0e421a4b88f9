"""The builtin corpus: real, deterministic, split by object, and hard to win by length."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from typing import Any

from camel_ray.data.dataset import PreparedDataset
from camel_ray.data.python_docs import rows
from camel_ray.data.python_docs.answers import first_sentence
from camel_ray.data.python_docs.extract import documented_objects

URI = "builtin://python-docs/"


def columns(view: str) -> list[dict[str, Any]]:
    return [dict(row.columns) for row in rows(URI + view)]


def objects_of(side: Any) -> set[str]:
    return {json.loads(row)["object"] for row in side["row"]}


def test_well_known_objects_are_found_with_kind_and_arguments() -> None:
    found = {entry.name: entry for entry in documented_objects()}
    assert len(found) > 4000
    assert (found["os.path.join"].kind, found["os.path.join"].arguments) == ("function", "a, *p")
    assert (found["pathlib.Path.mkdir"].kind, found["pathlib.Path"].kind) == ("method", "class")
    assert found["math.sqrt"].arguments == "x, /"  # written in C
    assert found["str.upper"].kind == "method"
    assert found["pathlib.PurePath.name"].kind == "property"
    assert found["json"].kind == "module"
    assert not any(part.startswith("_") for name in found for part in name.split("."))


def test_the_first_sentence_is_plain_text() -> None:
    assert first_sentence("Join two or more pathname components, inserting '/' as needed.\nIf any") == (
        "Join two or more pathname components, inserting '/' as needed."
    )
    assert first_sentence("f(x) -> y\n\nReturn :class:`~a.Path` of ``x``,\ne.g. a file. More.") == (
        "Return a.Path of x, e.g. a file."
    )
    assert first_sentence("return the sum of values") == "Return the sum of values."
    for stub in ("", "Internal function.", "See the base class for it.", "x = 1; y == 2", "Short."):
        assert first_sentence(stub) is None


def test_there_are_thousands_of_good_rows() -> None:
    text, instructions, preferences = map(columns, ("text", "instructions", "preferences"))
    assert len(text) > 2000
    assert sum(len(row["text"]) for row in text) > 1_000_000
    assert len(instructions) > 5000
    assert len(preferences) > 6000
    assert set(Counter(row["kind"] for row in instructions)) == {"describe", "reverse", "arguments", "kind"}
    answers = {(row["object"], row["kind"]): row["completion"] for row in instructions}
    assert answers["os.path.join", "describe"] == "Join two or more pathname components, inserting '/' as needed."
    assert max(len(row["completion"]) for row in instructions if row["kind"] == "describe") <= 200


def test_the_longer_answer_is_right_on_about_half_of_the_pairs() -> None:
    pairs = columns("preferences")
    points = [
        0.5 if len(row["chosen"]) == len(row["rejected"]) else float(len(row["chosen"]) > len(row["rejected"]))
        for row in pairs
    ]
    assert 0.45 < sum(points) / len(points) < 0.58


def test_wrong_answers_are_of_many_kinds_and_never_the_right_one() -> None:
    pairs = columns("preferences")
    kinds = Counter(row["kind"] for row in pairs)
    assert set(kinds) == {"garbled", "vague", "repeating", "unfinished", "opposite", "other object", "spliced"}
    assert min(kinds.values()) > 0.02 * len(pairs)
    assert max(kinds.values()) < 0.35 * len(pairs)
    assert all(row["chosen"].strip() != row["rejected"].strip() for row in pairs)


def test_instructions_and_preferences_hold_out_the_same_objects(prepared: Any) -> None:
    sets: list[PreparedDataset] = [prepared(source=URI + v, validation=0.05) for v in ("instructions", "preferences")]
    held, trained = ([objects_of(getattr(s, side)) for s in sets] for side in ("validation", "train"))
    assert held[0] == held[1]
    assert held[0].isdisjoint(trained[0] | trained[1])
    assert 0.03 < len(held[0]) / len(trained[0] | held[0]) < 0.07
    assert [s.report.rejected for s in sets] == [{}, {}]


def test_another_process_gives_the_same_rows_without_a_display_or_side_effects() -> None:
    script = (
        "import sys, json, hashlib, warnings; warnings.simplefilter('error')\n"
        "from camel_ray.data.python_docs import rows\n"
        "views = 'text', 'instructions', 'preferences'\n"
        "found = [dict(row.columns) for view in views for row in rows('builtin://python-docs/' + view)]\n"
        "assert not {'antigravity', 'this', 'turtle', 'tkinter', 'idlelib'} & set(sys.modules)\n"
        "print(hashlib.sha256(json.dumps(found).encode()).hexdigest())"
    )
    environment = {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    outputs = []
    for seed in ("1", "2"):
        process = subprocess.run(
            [sys.executable, "-c", script], capture_output=True, text=True, env={**environment, "PYTHONHASHSEED": seed}
        )
        assert (process.returncode, process.stderr) == (0, "")
        outputs.append(process.stdout)
    assert outputs[0] == outputs[1]
