"""SARIF: valid by its schema, at the right lines, with paths that code scanning can match."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import jsonschema
import pytest

from asyncsafe.reports import sarif

from .making import HOSTILE, allowed, hostile, place, refused, report, sharing, site

SCHEMA = json.loads(
    (Path(__file__).parent.parent / "sarif" / "sarif-schema-2.1.0.json").read_text()
)
VALIDATOR = jsonschema.Draft7Validator(SCHEMA, format_checker=jsonschema.FormatChecker())


def run_of(*sites: dict[str, Any], root: str = "/app") -> dict[str, Any]:
    document = json.loads(sarif.render(report(*sites), root))
    VALIDATOR.validate(document)
    (run,) = document["runs"]
    return dict(run)


def test_every_kind_of_site_is_valid_and_has_its_level() -> None:
    run = run_of(site(1), refused(2), allowed(3, "fast"), sharing(4), hostile(5))

    rules = [rule["id"] for rule in run["tool"]["driver"]["rules"]]
    assert [(result["ruleId"], result["level"]) for result in run["results"]] == [
        ("blocking-call", "warning"),
        ("blocking-call", "error"),
        ("blocking-call", "note"),
        ("shared-transaction", "error"),
        ("blocking-call", "warning"),
    ]
    assert all(rules[result["ruleIndex"]] == result["ruleId"] for result in run["results"])
    assert all(rule["help"]["text"] for rule in run["tool"]["driver"]["rules"])


def test_it_is_valid_without_results() -> None:
    assert run_of()["results"] == []


def test_a_result_is_at_the_users_line_below_the_root() -> None:
    (result,) = run_of(site(17))["results"]

    (location,) = result["locations"]
    assert location["physicalLocation"] == {
        "artifactLocation": {"uri": "orders/queries_17.py", "uriBaseId": "%SRCROOT%"},
        "region": {"startLine": 17},
    }
    assert "SELECT total FROM orders_17" in result["message"]["text"]
    assert "database_sync_to_async(find_17)" in result["message"]["text"]
    assert "2 calls blocked it for 6.0 ms, 4.0 ms at worst" in result["message"]["text"]
    assert result["occurrenceCount"] == 2


def test_the_coroutine_is_related_and_the_stack_a_flow_from_it_to_the_call() -> None:
    at, between = place("/app/a.py", 1, "find"), place("/app/b.py", 2, "load")
    under = place("/app/c.py", 3, "view", True)
    (result,) = run_of(site(call_site=at, coroutine=under, stack=[at, between, under]))["results"]

    (related,) = result["relatedLocations"]
    assert related["physicalLocation"]["region"]["startLine"] == 3
    assert related["message"]["text"] == "called under async view()"
    (flow,) = result["codeFlows"]
    steps = [step["location"] for step in flow["threadFlows"][0]["locations"]]
    assert [step["physicalLocation"]["artifactLocation"]["uri"] for step in steps] == [
        "c.py",
        "b.py",
        "a.py",
    ]


def test_where_a_transaction_was_begun_is_related() -> None:
    (result,) = run_of(sharing(1))["results"]
    assert result["relatedLocations"][0]["physicalLocation"]["region"]["startLine"] == 7


@pytest.mark.parametrize(
    ("file", "artifact"),
    [
        ("/app/a b/ü#?.py", {"uri": "a%20b/%C3%BC%23%3F.py", "uriBaseId": "%SRCROOT%"}),
        ("/usr/lib/python3/site.py", {"uri": "file:///usr/lib/python3/site.py"}),
        ("/application/x.py", {"uri": "file:///application/x.py"}),
        ("/app/caf\udce9.py", {"uri": "caf%E9.py", "uriBaseId": "%SRCROOT%"}),
        ("/usr/caf\udce9.py", {"uri": "file:///usr/caf%E9.py"}),
        ("<string>", {"uri": "%3Cstring%3E"}),
    ],
)
def test_paths_are_uris(file: str, artifact: dict[str, str]) -> None:
    (result,) = run_of(site(call_site=place(file, 0, "f")))["results"]

    physical = result["locations"][0]["physicalLocation"]
    assert physical["artifactLocation"] == artifact
    assert physical["region"]["startLine"] == 1  # SARIF has no line 0


def fingerprints(*sites: dict[str, Any], root: str = "/app") -> list[str]:
    results = run_of(*sites, root=root)["results"]
    return [result["partialFingerprints"]["asyncsafeSite/v1"] for result in results]


def test_a_fingerprint_survives_lines_that_move_and_another_checkout() -> None:
    before = site(call_site=place("/app/a.py", 10, "find"))
    after = site(
        call_site=place("/ci/work/a.py", 90, "find"),
        coroutine=place("/ci/work/orders/views.py", 1, "list_orders", True),
    )

    assert fingerprints(before) == fingerprints(after, root="/ci/work")


def test_fingerprints_tell_sites_apart() -> None:
    same = [site(call_site=place("/app/a.py", line, "find")) for line in (1, 2)]
    other = site(call_site=place("/app/a.py", 3, "load"))
    operation = site(operation="sqlite3.Cursor.fetchall")

    assert len(set(fingerprints(*same, other, operation))) == 4


def test_hostile_names_are_neither_links_nor_paths() -> None:
    (result,) = run_of(hostile(1))["results"]

    assert "](http" not in json.dumps(result["message"])
    uri = result["locations"][0]["physicalLocation"]["artifactLocation"]["uri"]
    assert set("<>\"'`{ \n") & set(uri) == set()
    assert HOSTILE in unquote(uri)
