from __future__ import annotations

import errno
import json
import os
import re
from html.parser import HTMLParser

import pytest
import race_samples
from race_samples import METHODS, single

from hasten.core import report
from hasten.core.errors import InputError, StoreError
from hasten.core.result import Result

HOSTILE = ('mine.</script><script>alert("x")</script>', "mine.<img src=x onerror=alert(1)>", "mine.a&b'\"{{ 7 * 7 }}")


def hostile() -> Result:
    """A race in which every text that a user can choose is an attack."""
    return single(
        methods=("made.adamw", *HOSTILE, "made.broken"),
        name="<script>alert(2)</script>",
        measures="</script>loss<b>",
        summary='<a href="https://example.com">x</a>',
        kind="<i>train</i>",
    )


class Page(HTMLParser):
    """Tags and visible text of a page, scripts by themselves."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.text = ""
        self._inside = ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self._inside = tag
        if tag == "script":
            self.scripts.append("")

    def handle_endtag(self, tag):
        self._inside = ""

    def handle_data(self, data):
        if self._inside == "script":
            self.scripts[-1] += data
        elif self._inside != "style":
            self.text += data


@pytest.fixture(scope="module")
def page() -> Page:
    return Page(report.render(single()))


def test_shows_headline_leaderboard_code_settings_and_every_run(page):
    for part in ("adopt reaches mean loss 0.1 in 0.65× the steps of adamw", "Leaderboard", "0.58–0.67", "3 diverged"):
        assert part in page.text
    assert "method = hasten.get('made.adopt').make(lr=0.003, betas=(0.9, 0.99))" in page.text
    assert "tuning trials" in page.text
    assert "a processor" in page.text
    assert "ValueError: lr must be positive (broken.py:12)" in page.text
    assert f"All {5 * len(METHODS)} runs" in page.text


def test_asks_nothing_of_the_network(page):
    for tag, attributes in page.tags:
        assert tag not in ("iframe", "object", "embed", "img", "base")
        assert "src" not in attributes
        assert tag != "link" or attributes["href"] == "data:,"
    policy = next(
        a["content"] for t, a in page.tags if t == "meta" and a.get("http-equiv") == "Content-Security-Policy"
    )
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    assert "unsafe-inline" not in policy.partition("style-src")[0]


def test_every_measure_has_its_curves_and_a_single_problem_no_profile(page):
    charts = json.loads(page.scripts[0])
    assert set(charts) == {"0"}
    assert set(charts["0"]) == {"steps", "seconds", "calls"}
    assert "Performance profile" not in page.text


def test_several_problems_get_an_overview_a_profile_and_bytes_where_some_were_sent():
    page = Page(report.render(race_samples.several()))
    charts = json.loads(page.scripts[0])
    assert set(charts) == {"0", "1", "2", "overview"}
    assert [("bytes" in charts[number]) for number in ("0", "1", "2")] == [False, True, False]
    assert "Performance profile" in page.text
    assert "lion comes first over 3 problems" in page.text


def test_texts_of_users_stay_text():
    page = Page(report.render(hostile()))
    assert len(page.scripts) == 3
    assert not [a for t, a in page.tags if t in ("img", "b") and "src" in a]
    assert not [name for _, attributes in page.tags for name in attributes if name.startswith("on")]
    for name in HOSTILE:
        assert name.removeprefix("mine.") in page.text
    names = {trace.get("name") for trace in json.loads(page.scripts[0])["0"]["steps"]["data"]}
    assert "&lt;img src=x onerror=alert(1)&gt;" in names


@pytest.mark.parametrize(
    "result",
    [
        single(methods=()),
        single(methods=("made.broken",)),
        single(methods=("made.adopt",), seeds=1),
        single(target=None),
        single(target=1e-9),
    ],
    ids=["nothing ran", "all failed", "one run", "no target", "nobody arrived"],
)
def test_is_written_for_every_outcome(result, tmp_path):
    text = result.report(tmp_path / "r.html").read_text(encoding="utf-8")
    visible = Page(text).text
    assert not re.search(r"\bnan\b|\binf\b|None|Undefined", visible.partition("All ")[0])


class TestWriting:
    def test_makes_folders_and_replaces_an_older_report(self, tmp_path):
        path = tmp_path / "deep" / "er" / "race.html"
        assert single(seeds=1).report(path) == path
        before = path.read_text(encoding="utf-8")
        single(seeds=2).report(str(path))
        assert path.read_text(encoding="utf-8") != before
        assert [file.name for file in path.parent.iterdir()] == ["race.html"]

    def test_follows_a_link_instead_of_replacing_it(self, tmp_path):
        (tmp_path / "link.html").symlink_to(tmp_path / "real.html")
        single(seeds=1).report(tmp_path / "link.html")
        assert (tmp_path / "link.html").is_symlink()
        assert (tmp_path / "real.html").stat().st_size > 1e6

    def test_a_full_disk_is_one_clear_error_and_leaves_the_old_report(self, tmp_path, monkeypatch):
        path = tmp_path / "race.html"
        path.write_text("old", encoding="utf-8")

        def full(_: int) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        monkeypatch.setattr(os, "fsync", full)
        with pytest.raises(StoreError, match=r"race\.html: No space left on device"):
            single(seeds=1).report(path)
        assert path.read_text(encoding="utf-8") == "old"
        assert [file.name for file in tmp_path.iterdir()] == ["race.html"]

    def test_a_folder_a_file_as_folder_and_a_device_are_refused_at_the_door(self, tmp_path):
        with pytest.raises(InputError, match=r"is a folder; name a file in it"):
            report.check_destination(tmp_path)
        (tmp_path / "file").write_text("")
        with pytest.raises(InputError, match="is a file, so"):
            report.check_destination(tmp_path / "file" / "race.html")
        with pytest.raises(InputError, match="device"):
            report.check_destination("/dev/null")

    def test_a_folder_without_permission_is_refused_at_the_door(self, tmp_path, monkeypatch):
        monkeypatch.setattr(os, "access", lambda *_: False)
        with pytest.raises(StoreError, match="no permission"):
            report.check_destination(tmp_path / "race.html")
