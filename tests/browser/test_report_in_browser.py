"""The report in a real browser, with the network cut off."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import race_samples
import torch
from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.support.wait import WebDriverWait

from hasten.core.picture import encode, tiles

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")

pytestmark = pytest.mark.skipif(
    not (BROWSER and DRIVER) and "HASTEN_REQUIRE_BROWSER" not in os.environ,
    reason="needs Chromium and its driver: apt install chromium chromium-driver",
)

NAMES = ("mine.</script><script>taken=1</script>", 'mine.<img src="x" onerror="taken=1">')


class Browser:
    """A headless Chromium that remembers what it asked of the network and what it complained about."""

    def __init__(self, profile: Path) -> None:
        options = webdriver.ChromeOptions()
        options.binary_location = str(BROWSER)
        for flag in (
            "headless=new",
            "no-sandbox",
            "disable-gpu",
            "disable-dev-shm-usage",
            "disable-quic",
            "no-first-run",
            "disable-background-networking",
            "disable-component-update",
            "disable-sync",
            "force-prefers-reduced-motion",
            "proxy-server=127.0.0.1:9",
            "window-size=1300,1600",
            f"user-data-dir={profile}",
        ):
            options.add_argument(f"--{flag}")
        options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
        self.driver = webdriver.Chrome(options=options, service=Service(DRIVER))

    def open(self, path: Path) -> None:
        """Load a page and wait until its charts are drawn."""
        self.driver.get_log("browser")
        self.driver.get_log("performance")
        self.driver.get(path.as_uri())
        wait = WebDriverWait(self.driver, 20)
        wait.until(lambda _: len(self.all(".chart .main-svg")) >= len(self.all(".chart")))

    def all(self, css: str) -> list:
        return self.driver.find_elements(By.CSS_SELECTOR, css)

    def one(self, css: str):
        return self.driver.find_element(By.CSS_SELECTOR, css)

    def run(self, script: str, *arguments):
        return self.driver.execute_script(script, *arguments)

    def texts(self, css: str) -> list[str]:
        """Texts of the elements that are visible."""
        return [element.text for element in self.all(css) if element.is_displayed()]

    def press(self, label: str, section: int = 0) -> None:
        """Press a measure's button of a section's leaderboard."""
        self.all("section[data-charts]")[section].find_element(By.CSS_SELECTOR, f"button[data-by='{label}']").click()

    def complaints(self) -> list[str]:
        return [entry["message"] for entry in self.driver.get_log("browser")]

    def requests(self) -> list[str]:
        messages = [json.loads(entry["message"])["message"] for entry in self.driver.get_log("performance")]
        asked = [m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"]
        return [url for url in asked if not url.startswith(("data:", "blob:"))]


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    made = Browser(tmp_path_factory.mktemp("profile"))
    yield made
    made.driver.quit()


@pytest.fixture(scope="module")
def single(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return race_samples.single().report(tmp_path_factory.mktemp("report") / "single.html")


@pytest.fixture(scope="module")
def several(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return race_samples.several().report(tmp_path_factory.mktemp("report") / "several.html")


@pytest.fixture(scope="module")
def pictured(tmp_path_factory: pytest.TempPathFactory) -> Path:
    result = race_samples.single()
    for number, method in enumerate(("made.adopt", "made.lion", "made.adamw")):
        images = torch.linspace(-1, 1, 12 * 64).reshape(12, 1, 8, 8) * (-1) ** number
        result.cell("digits-mlp", method)[0].trace.picture = encode(tiles(images, columns=4))
    return result.report(tmp_path_factory.mktemp("report") / "pictured.html")


def test_shows_everything_and_asks_nothing_of_the_network(browser, single):
    browser.open(single)
    assert browser.one("h1").text == "adopt reaches mean loss 0.1 in 0.65× the steps of adamw"
    assert browser.texts(".board .name") == ["adopt", "lion", "adamw", "prodigy", "unstable", "sophia", "broken"]
    assert browser.texts(".legendtext")[:4] == ["adopt", "lion", "adamw", "prodigy"]
    lines = browser.all(".chart .scatterlayer .trace path.js-line")
    assert sum(line.rect["width"] > 50 and line.rect["height"] > 50 for line in lines) >= 4
    assert "target 0.1" in browser.one(".chart").text
    assert browser.complaints() == []
    assert browser.requests() == [single.as_uri()]


def test_pictures_stand_beside_the_curves(browser, single, pictured):
    browser.open(single)
    assert browser.all("main img, figure") == []
    browser.open(pictured)
    sizes = "return [...document.querySelectorAll('figure img')].map((i) => [i.naturalWidth, i.naturalHeight, i.width])"
    assert [size[:2] for size in browser.run(sizes)] == [[35, 26]] * 3
    assert all(size[2] >= 150 for size in browser.run(sizes))
    assert browser.texts("figcaption .name") == ["adopt", "lion", "adamw"]
    assert browser.texts("figcaption small")[0] == "380 steps · mean loss 0.0987"
    corner = (
        "const i = document.querySelectorAll('figure img')[arguments[0]], c = document.createElement('canvas');"
        "const g = c.getContext('2d'); g.drawImage(i, 0, 0); return [...g.getImageData(0, 0, 1, 1).data]"
    )
    assert [browser.run(corner, number)[0] for number in (0, 1)] == [0, 255]
    assert browser.complaints() == []
    assert browser.requests() == [pictured.as_uri()]


def test_a_bar_stands_where_its_ratio_is(browser, single):
    browser.open(single)
    place = {}
    for row in browser.all("[data-panel=steps] tbody tr"):
        points = row.find_elements(By.CSS_SELECTOR, ".point")
        if points:
            place[row.find_element(By.CSS_SELECTOR, ".name").text] = points[0].rect["x"]
    assert place["adopt"] < place["lion"] < place["adamw"] < place["prodigy"]
    assert set(place) == {"adopt", "lion", "adamw", "prodigy"}


def test_the_switch_changes_leaderboard_and_curves(browser, single):
    browser.open(single)
    assert browser.texts(".board thead th:nth-child(4)") == ["steps"]
    browser.press("seconds")
    assert browser.texts(".board thead th:nth-child(4)") == ["seconds"]
    assert browser.texts(".board .first td:nth-child(4)") == ["1.44 s"]
    title = "return document.querySelector('.chart').layout.xaxis.title.text"
    WebDriverWait(browser.driver, 5).until(lambda _: browser.run(title) == "seconds in the method")
    assert set(browser.texts("button[aria-pressed=true]")) == {"seconds"}
    browser.press("steps")
    assert browser.texts(".board thead th:nth-child(4)") == ["steps"]
    assert browser.complaints() == []


def test_each_problem_has_its_own_switch_and_profile_shows(browser, several):
    browser.open(several)
    assert len(browser.all(".chart")) == 4
    assert "lion comes first over 3 problems" in browser.one("h1").text
    browser.press("seconds", section=1)
    pressed = [
        section.find_element(By.CSS_SELECTOR, "button[aria-pressed=true]").text
        for section in browser.all("section[data-charts]")
    ]
    assert pressed == ["steps", "seconds", "bytes", "calls"]
    assert browser.complaints() == []
    assert browser.requests() == [several.as_uri()]


def test_names_that_look_like_markup_stay_text(browser, tmp_path):
    result = race_samples.single(methods=("made.adamw", *NAMES), name="<script>taken=1</script>")
    browser.open(result.report(tmp_path / "hostile.html"))
    short = [name.removeprefix("mine.") for name in NAMES]
    assert browser.run("return window.taken") is None
    assert set(short) <= {element.get_property("textContent") for element in browser.all(".board .name > :last-child")}
    assert set(short) <= set(browser.texts(".legendtext"))
    assert browser.all("main img, main script") == []
    assert browser.complaints() == []


def test_light_and_dark_follow_the_system(browser, single):
    browser.open(single)
    wait = WebDriverWait(browser.driver, 10)
    for scheme, dark in (("light", False), ("dark", True)):
        media = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
        browser.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
        ground = "return getComputedStyle(document.body).backgroundColor"
        ink = "return getComputedStyle(document.querySelector('.legendtext')).fill"
        wait.until(lambda _, dark=dark, ground=ground: (_light(browser.run(ground)) < 60) == dark)
        wait.until(lambda _, dark=dark, ink=ink: (_light(browser.run(ink)) > 200) == dark)
    browser.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})


@pytest.mark.parametrize("page", ["several", "pictured"])
def test_nothing_sticks_out_of_a_phone(browser, page, request):
    size = {"width": 390, "height": 800, "deviceScaleFactor": 1, "mobile": False}
    browser.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    browser.open(request.getfixturevalue(page))
    width = browser.run("return document.documentElement.scrollWidth")
    browser.driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    assert width <= 390


def test_the_code_can_be_copied(browser, single):
    browser.open(single)
    browser.driver.execute_cdp_cmd("Browser.grantPermissions", {"permissions": ["clipboardReadWrite"]})
    browser.one(".copy").click()
    WebDriverWait(browser.driver, 5).until(lambda _: browser.one(".copy").text == "Copied")
    script = "const done = arguments[0]; navigator.clipboard.readText().then(done, (error) => done(String(error)))"
    text = browser.driver.execute_async_script(script)
    assert text == "method = hasten.get('made.adopt').make(lr=0.003, betas=(0.9, 0.99))"


def test_the_policy_stops_foreign_scripts(browser, single):
    browser.open(single)
    browser.run(
        "const script = document.createElement('script'); script.textContent = 'window.taken = 1';"
        "document.body.append(script)"
    )
    assert browser.run("return window.taken") is None
    assert any("Content Security Policy" in message for message in browser.complaints())


def _light(colour: str) -> float:
    red, green, blue = (float(part) for part in colour.strip("rgba()").split(",")[:3])
    return (red + green + blue) / 3
