"""The HTML page: nothing in it runs but its own script, and it works in a real browser."""

import re
import shutil
from html.parser import HTMLParser

import numpy as np
import pytest
from study import make_run

from analysis import foreign, report
from analysis.load import load

OWN = "document.title='owned'"
PAYLOADS = [
    f"<script>{OWN}</script>",
    f"</pre><script>{OWN}</script>",
    f'<img src=x onerror="{OWN}">',
    f'"><svg onload={OWN}>',
    f"</title><script>{OWN}</script>",
    f"javascript:{OWN}",
    f'<a href="javascript:{OWN}">x</a>',
    "{{ 7 * 7 }}{% raw %}",
    "\x1b[31mred\x00\x07",
    "\u202ereversed",
    "</td><td>",
    f'<iframe srcdoc="<script>parent.{OWN}</script>">',
]


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    root = tmp_path_factory.mktemp("page")
    rng = np.random.default_rng(0)
    for name, level in (("token_sampling", 0.3), ("gaussian_noise", 0.6)):
        for seed in range(3):
            text = " ".join(PAYLOADS).replace("\x00", "")
            cells = {"completion": text, "prompt": text, "gold": PAYLOADS[0], "extracted": PAYLOADS[2]}
            make_run(root / "runs", name, seed, rng.binomial(8, level, 12), rng.binomial(8, 0.2, 12), samples=cells)
    report.write(load([root / "runs"]), "token_sampling", root / "out", None, [])
    return root / "out" / "report.html"


class Parsed(HTMLParser):
    def __init__(self):
        super().__init__()
        self.scripts, self.bad = 0, []

    def handle_starttag(self, tag, attrs):
        self.scripts += tag == "script"
        if tag in ("iframe", "object", "embed", "svg", "link", "base", "form"):
            self.bad.append(tag)
        for name, value in attrs:
            if name.startswith("on") or (
                name in ("href", "src") and not (value or "").startswith(("#", "data:image/png"))
            ):
                self.bad.append((tag, name, value))


def test_model_text_makes_no_node_and_no_handler(page):
    text = page.read_text("utf-8")
    parsed = Parsed()
    parsed.feed(text)
    assert parsed.scripts == 1 and parsed.bad == []
    assert "default-src 'none'" in text and "49" not in re.findall(r"<pre[^>]*>(.*?)</pre>", text, re.S)[0]
    assert not re.search(r"[\x00-\x08\x0b\x0e-\x1f\x1b\u202e]", text)


def test_a_name_that_is_markup_stays_text(tmp_path):
    path = tmp_path / "s.jsonl"
    path.write_text(
        '{"id": "<script>x</script>", "correct": 1, "output": "a"}\n{"id": "b", "correct": 0, "output": "a"}\n'
    )
    study = foreign.load([f"<script>alert(1)<script>={path}", f"token_sampling={path}"])
    report.write(study, "token_sampling", tmp_path / "out", [1], [])
    parsed = Parsed()
    parsed.feed((tmp_path / "out" / "report.html").read_text("utf-8"))
    assert parsed.scripts == 1 and parsed.bad == []


@pytest.fixture(scope="module")
def browser():
    webdriver = pytest.importorskip("selenium.webdriver")
    places = [shutil.which(name) for name in ("chromium", "chromium-browser", "google-chrome")]
    driver = shutil.which("chromedriver")
    if not any(places) or not driver:
        pytest.skip("no Chromium with its driver: make services")
    options = webdriver.ChromeOptions()
    options.binary_location = next(place for place in places if place)
    for argument in (
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--window-size=1280,1600",
    ):
        options.add_argument(argument)
    started = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    yield started
    started.quit()


def test_the_page_sorts_and_opens_in_a_browser_and_runs_no_model_text(page, browser, tmp_path):
    browser.get(page.as_uri())
    assert browser.title == "Comparison against token_sampling"

    def column(at):
        return [row.find_elements("css selector", "th,td")[at].get_attribute("data-value")
                for row in browser.find_elements("css selector", "#passk tbody tr")]  # fmt: skip

    head = browser.find_elements("css selector", "#passk thead tr:last-child button")[2]
    for order in (True, False):
        head.click()
        values = [float(value) for value in column(2)]
        assert values == sorted(values, reverse=order) and len(set(values)) == 3
    problem = browser.find_element("css selector", "details.problem")
    assert not problem.find_element("css selector", ".pair").is_displayed()
    problem.find_element("css selector", "summary").click()
    assert problem.find_element("css selector", ".pair").is_displayed()
    assert "<script>document.title='owned'</script>" in problem.find_element("css selector", ".pair pre").text
    assert browser.title == "Comparison against token_sampling"
    assert browser.save_screenshot(str(tmp_path / "page.png"))
    assert not [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"]
