"""The HTML page: nothing in it runs but its own script, and it works in a real browser."""

import base64
import hashlib
import html
import re
import shutil
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image
from study import make_run

from analysis import foreign, plots, report
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
    for name, level in (("token_sampling", 0.3), ("gaussian_noise", 0.6), ("random_noise", 0.4)):
        for seed in range(3):
            text = " ".join(PAYLOADS).replace("\x00", "")
            cells = {"completion": text, "prompt": text, "gold": PAYLOADS[0], "extracted": PAYLOADS[2]}
            before = rng.binomial(8, 0.2, 12) if seed < 1 else None
            make_run(root / "runs", name, seed, rng.binomial(8, level, 12), before, samples=cells)
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
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', text)
    assert policy is not None
    for tag in ("script", "style"):
        (body,) = re.findall(rf"<{tag}>(.*?)</{tag}>", text, re.S)
        allowed = base64.b64encode(hashlib.sha256(body.encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{allowed}'" in html.unescape(policy[1]), "the page's own and nothing else"
    assert (
        "default-src 'none'" in html.unescape(policy[1])
        and "unsafe" not in policy[1]
        and "49" not in re.findall(r"<pre[^>]*>(.*?)</pre>", text, re.S)[0]
    )
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


def column(browser, table, at):
    rows = browser.find_elements("css selector", f"#{table} tbody tr")
    return [row.find_elements("css selector", "th,td")[at].get_attribute("data-value") for row in rows]


def test_the_page_sorts_with_empty_cells_last(page, browser):
    browser.get(page.as_uri())
    assert browser.title == "Comparison against token_sampling"
    for table, at, empty in (
        ("passk", 2, 0),
        ("training", 1, 0),
        ("tests", 10, 0),
        ("noise", 2, 0),
        ("diversity", 3, 4),
    ):
        head = browser.find_elements("css selector", f"#{table} thead tr:last-child button")[at]
        for down in (True, False):
            head.click()
            values = column(browser, table, at)
            there = [value for value in values if value]
            assert values == there + [""] * empty, (table, at, values)
            if table != "training":
                assert [float(v) for v in there] == sorted(map(float, there), reverse=down)


def test_any_two_methods_are_laid_side_by_side(page, browser, tmp_path):
    from selenium.webdriver.support.ui import Select

    browser.get(page.as_uri())
    problem = browser.find_element("css selector", "details.problem")
    assert not problem.find_element("css selector", ".pair").is_displayed()
    problem.find_element("css selector", "summary").click()

    def sides():
        shown = [side for side in problem.find_elements("css selector", ".pair > div") if side.is_displayed()]
        shown.sort(key=lambda side: side.location["x"])
        return [side.find_element("css selector", "strong").text for side in shown]

    assert sides()[0] == "token_sampling" and len(sides()) == 2
    left, right = (Select(choice) for choice in browser.find_elements("css selector", ".choice select"))
    assert [option.text for option in left.options] == ["token_sampling", "gaussian_noise", "random_noise", "untrained"]
    for pair in (
        ("random_noise", "gaussian_noise"),
        ("untrained", "token_sampling"),
        ("gaussian_noise", "random_noise"),
    ):
        left.select_by_visible_text(pair[0])
        right.select_by_visible_text(pair[1])
        assert sides() == list(pair)
    assert "<script>document.title='owned'</script>" in problem.find_element("css selector", ".pair").text
    assert browser.title == "Comparison against token_sampling", "no model text ran"
    assert browser.save_screenshot(str(tmp_path / "page.png"))
    assert not [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"]


def test_a_narrow_window_needs_no_sideways_scrolling(page, browser):
    browser.set_window_size(500, 900)
    browser.get(page.as_uri())
    for summary in browser.find_elements("css selector", "details.problem summary")[:2]:
        summary.click()
    wide = browser.execute_script("return document.documentElement.scrollWidth - document.documentElement.clientWidth")
    browser.set_window_size(1280, 1600)
    assert wide <= 0


@pytest.mark.parametrize("width", [1400, 390])
def test_nothing_is_cut_off_and_a_telephone_scrolls_tables_alone(page, browser, width):
    screen = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)
    browser.get(page.as_uri())
    beyond = browser.execute_script(
        "return document.documentElement.scrollWidth - document.documentElement.clientWidth"
    )
    wide = browser.execute_script(
        "return [...document.querySelectorAll('.wide')].filter(x => x.scrollWidth > x.clientWidth).length"
    )
    browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    assert beyond <= 0 and (wide == 0 or width == 390)


def test_the_page_begins_with_the_answer_and_what_was_compared(page):
    text = page.read_text("utf-8")
    at = [text.index(words) for words in ('class="verdict"', "What was compared", "Mean and Pass@k</h2>")]
    assert at == sorted(at)
    rows = dict(re.findall(r'<tr><th scope="row"[^>]*>(.*?)</th><td[^>]*>(.*?)</td></tr>', text))
    assert rows["methods"] == "untrained, gaussian_noise, random_noise, token_sampling"
    assert rows["runs"] == "9, 3 training seeds" and rows["data and model versions"] == "bench v1"
    for name in re.findall(r'class="sortable" id="(\w+)"', text):
        assert (page.parent / f"{name}.csv").exists(), name


def test_long_texts_keep_their_end_and_the_page_its_size(tmp_path):
    for name in ("token_sampling", "gaussian_noise", "a", "b"):
        text = "x" * 40_000 + f"the end of {name}"
        make_run(tmp_path / "runs", name, 0, np.arange(9) % 8, samples={"completion": text, "prompt": text})
    report.write(load([tmp_path / "runs"]), "token_sampling", tmp_path / "out", None, [])
    text = (tmp_path / "out" / "report.html").read_text("utf-8")
    assert all(f"the end of {name}" in text for name in ("token_sampling", "gaussian_noise", "a", "b"))
    assert len(re.sub(r'"data:image/png[^"]*"', "", text)) < 500_000


def test_thin_lines_keep_their_colors_in_small_pictures(tmp_path):
    across, down = np.meshgrid(np.linspace(120, 255, 300), np.linspace(120, 255, 200))
    picture = np.stack([across, down, np.full_like(across, 200)], axis=-1).astype(np.uint8)  # bands over bands
    colors = [tuple(int(color[at : at + 2], 16) for at in (1, 3, 5)) for color in plots.COLORS]
    for row, color in enumerate(colors):
        picture[20 + 20 * row, 50:80] = color
    Image.fromarray(picture).save(tmp_path / "x.png")
    plots.shrink(tmp_path / "x.png")
    with Image.open(tmp_path / "x.png") as small:
        found = np.asarray(small.convert("RGB")).astype(int)
    for row, color in enumerate(colors):
        assert np.abs(found[20 + 20 * row, 65] - color).max() <= 8, color
