"""`report.html`: whole, safe with any text, readable in light and dark and on a phone."""

import html
import json
import re
import shlex
import shutil
import subprocess
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
from matplotlib.image import imread

from agents import figures, page, training
from agents.arguments import PRESETS, parse_arguments, training_command
from agents.report import Record

EVIL = "<script>alert(1)</script> \"'><img src=x onerror=alert(2)> & $x_1$"
SECTIONS = [
    *("measures", "curves", "distributions", "samples", "best", "worst", "arguments", "versions"),
]
SMALL = [
    *("--n-layer", "1", "--n-embd", "16", "--n-head", "2", "--num-envs", "8", "--max-tokens", "6"),
    *("--eval-episodes", "24", "--start-episodes", "96", "--kl-coef", "1"),
    *("--model", "random", "--vocabulary", "small", "--quiet"),
]


def judge(texts):
    """Longer texts are better, to 1."""
    return np.array([min(1, len(text) / 40) for text in texts])


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished run of the bundled judge, resumed once."""
    out = tmp_path_factory.mktemp("runs") / "tiny"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(page, "write", lambda *_: None)
        assert training.main([*SMALL, "--out", str(out), "--updates", "2"]) == 0
    assert training.main(["--out", str(out), "--resume", "--updates", "4"]) == 0
    return out


def changed(record, **values):
    """A record with other values in its summary."""
    return replace(record, summary=record.summary | values)


class Page(HTMLParser):
    """A page's elements, each closed in its turn, and its visible text."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.open, self.text = [], [], ""
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag != "meta":
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data * (self.open[-1:] != ["style"])

    def named(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]


@pytest.fixture
def blank(monkeypatch):
    """Pages without pictures, which are quick to make."""
    monkeypatch.setattr(figures, "svg", lambda panel: f"<svg aria-label='{panel.title}'></svg>")


@pytest.fixture(scope="module")
def text(run):
    return (run / "report.html").read_text("utf-8")


def test_the_page_holds_what_the_run_recorded(run, text):
    parsed = Page(text)
    assert [section["id"] for section in parsed.named("section")] == SECTIONS
    summary = json.loads((run / "summary.json").read_text())
    assert f"{summary['after']['reward']:+.3f}".replace("-", "−") in parsed.text
    for word in (
        "tiny",
        "VADER",
        summary["versions"]["torch"],
        "nats per text",
        summary["date"][:10],
    ):
        assert word in parsed.text, word
    assert "Resumed at update 2: updates from 2 to 4" in parsed.text
    assert "since update 2" in parsed.text
    samples = Record.read(run).samples
    for sample in samples["before"][:12] + samples["after"][:12]:
        assert sample["text"].strip() in parsed.text
    for name, value in summary["arguments"].items():
        assert name.replace("_", " ") in parsed.text
        assert isinstance(value, list) or str(value if value is not None else "–") in parsed.text


def test_nothing_is_loaded_from_elsewhere_and_nothing_runs(text):
    parsed = Page(text)
    tags = {tag for tag, _ in parsed.elements}
    assert not tags & {"script", "link", "img", "iframe", "object", "embed", "image", "base"}
    assert "http" not in text
    assert "@import" not in text
    assert not re.search(r"url\((?!#)", text)
    for _, attributes in parsed.elements:
        assert not any(name.startswith("on") for name in attributes)
        assert all(attributes.get(name, "#").startswith("#") for name in ("href", "src"))


def test_pictures_are_described_and_their_names_are_unique(text):
    parsed = Page(text)
    pictures = parsed.named("svg")
    assert len(pictures) == len(parsed.named("figcaption")) == 13
    assert all(svg["role"] == "img" and len(svg["aria-label"]) > 20 for svg in pictures)
    ids = [attributes["id"] for _, attributes in parsed.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    used = set(re.findall(r"(?:href=\"|url\()#([^\")]+)", text))
    assert used <= set(ids)


def test_every_colour_has_a_value_in_both_themes(text):
    style = text[text.index("<style>") : text.index("</style>")]
    light, dark = re.findall(r":root \{(.*?)\}", style, re.DOTALL)
    body = text[text.index("<body>") :]
    assert not re.search(r"(stroke|fill): #", body), "a colour that no theme sets"
    used = set(re.findall(r"var\((--[a-z]+)\)", text)) - {"--s"}
    assert {f"--{name}" for name in figures.COLOURS} <= used | {"--third"}
    for theme in (light, dark):
        assert used <= set(re.findall(r"(--[a-z]+):", theme))


def test_texts_are_escaped(run, blank):
    record = Record.read(run)
    for sample in record.samples["after"]:
        sample |= {"prompt": EVIL, "tokens": [EVIL, "\0\n"], "text": EVIL + EVIL + "\0\n"}
    summary = record.summary
    summary["arguments"] |= {"sentiment_model": EVIL, "out": EVIL, "prompts": EVIL}
    rendered = page.render(changed(record, error=EVIL), EVIL, judge)
    parsed = Page(rendered)
    assert "<script" not in rendered
    assert "<img" not in rendered
    assert "\0" not in rendered
    assert parsed.text.count(EVIL) > 20
    assert EVIL + EVIL + "␀␊" in parsed.text
    assert "Training ended in an error" in parsed.text


def test_tokens_are_coloured_by_their_contribution(run, blank):
    record = Record.read(run)
    tokens = [" good", " and", "", "long" * 6]
    record.samples["after"][0] |= {"tokens": tokens, "text": "".join(tokens)}
    rendered = page.render(record, "run", lambda texts: [len(t) / 40 - ("and" in t) for t in texts])
    assert '<span class="up" style="--s:0.12" title="+0.12">good</span> ' in rendered
    assert '<span class="down" style="--s:0.90" title="-0.90">and</span>' in rendered
    assert f'<span class="up" style="--s:0.60" title="+0.60">{"long" * 6}</span>' in rendered


def test_best_and_worst_are_distinct_texts_in_order(run):
    samples = [
        {"text": f"{n % 15}", "reward": n % 15, "tokens": [], "prompt": ""} for n in range(40)
    ]
    best, worst = page._extremes(samples)
    assert [s["reward"] for s in best] == list(range(14, 4, -1))
    assert [s["reward"] for s in worst] == list(range(10))
    assert [s["count"] for s in worst] == [3] * 10
    assert [len(found) for found in page._extremes(samples[:3])] == [3, 3]


def test_a_run_without_second_judge_or_log_has_a_page(run):
    record = Record.read(run)
    for when in ("before", "after"):
        record.summary[when].pop("vader")
    parsed = Page(page.render(replace(record, log=[], frontier=None), "run", judge))
    assert "There is no second judge" in parsed.text
    assert len(parsed.named("svg")) == 11


def test_texts_that_are_all_equal_have_a_page(run):
    record = Record.read(run)
    for when, samples in record.samples.items():
        record.samples[when] = [samples[0] | {"tokens": [], "text": "", "length": 0}] * len(samples)
    parsed = Page(page.render(record, "run", judge))
    assert "r = " not in parsed.text
    assert "(nothing)" in parsed.text


def test_a_run_that_stopped_early_says_so(run, blank):
    record = Record.read(run)
    assert "Stopped after" not in page.render(record, "run", judge)
    assert "Stopped after 3 of 4 updates" in page.render(changed(record, updates=3), "run", judge)


def test_a_page_of_many_texts_stays_small(run):
    record = Record.read(run)
    rng = np.random.default_rng(0)
    for when, samples in record.samples.items():
        record.samples[when] = [
            samples[0] | {"reward": r, "vader": r, "text": str(r)} for r in rng.normal(size=5000)
        ]
    assert len(page.render(record, "run", judge)) < 1_000_000


def test_a_failure_to_draw_loses_nothing(blank, tmp_path, monkeypatch, capsys):
    def fail(*_):
        raise OSError("no space left")

    monkeypatch.setattr(figures, "write_sheet", fail)
    out = tmp_path / "run"
    with pytest.raises(SystemExit):
        training.main([*SMALL, "--out", str(out), "--updates", "1", "--sentiment-model", "vader"])
    assert "no space left" in capsys.readouterr().err
    for name in ("checkpoint.zip", "summary.json", "samples.jsonl", "gpt2/model.safetensors"):
        assert (out / name).is_file()
    monkeypatch.setattr(figures, "write_sheet", lambda panels, path: None)
    page.write(out, judge)
    assert "There is no second judge" in (out / "report.html").read_text("utf-8")


def test_a_folder_without_a_finished_run_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"nothing holds no summary\.json: name the folder"):
        page.write(tmp_path / "nothing", judge)


@pytest.mark.parametrize("preset", PRESETS)
def test_the_command_starts_the_same_run(preset):
    flags = [
        "--seed",
        "3",
        "--target-length",
        "2",
        "9",
        "--no-cuda-graphs",
        "--learning-rate",
        "1e-05",
    ]
    for given in ([], flags, ["--prompts", "None", "--group-size", "4"]):
        args = parse_arguments(["--preset", preset, "--out", "x", *given])
        values = args.flat()  # with tuples; JSON has lists
        command = shlex.split(training_command(values))
        assert command == shlex.split(training_command(json.loads(json.dumps(values))))
        assert command[:4] == ["python", "-m", "agents", "train"]
        again = parse_arguments([*command[4:], "--out", "x"])
        assert again == args
        assert len(command) <= 6 + 2 * len(given)


# ---------------------------------------------------------------------------------------- browser

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
CHROMIUM = next(filter(None, map(shutil.which, BROWSERS)), None)
needs_chromium = pytest.mark.skipif(
    CHROMIUM is None, reason=f"opens the page in a browser, none of {', '.join(BROWSERS)} is here"
)


def chromium(folder, file, *flags):
    """What headless Chromium prints of a file."""
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
    command += [f"--user-data-dir={folder / 'profile'}", *flags, file.as_uri()]
    done = subprocess.run(command, capture_output=True, timeout=120, check=True)
    return done.stdout.decode("utf-8")


@needs_chromium
@pytest.mark.parametrize(
    ("scheme", "paper", "line", "other"),
    [(1, "#ffffff", "#0072b2", "#56b4e9"), (0, "#11151a", "#56b4e9", "#0072b2")],
    ids=["light", "dark"],
)
def test_chromium_shows_the_page_in_its_theme(run, scheme, paper, line, other, tmp_path):
    """Paper and curves have the theme's colours, and the curves never the other theme's."""
    picture = tmp_path / "page.png"
    flags = f"--screenshot={picture}", "--window-size=1280,2400"
    chromium(
        tmp_path, run / "report.html", *flags, f"--blink-settings=preferredColorScheme={scheme}"
    )
    pixels = (imread(picture)[:, :, :3] * 255).round().astype(int)
    assert pixels.shape[:2] == (2400, 1280)

    def count(colour):
        rgb = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
        return (pixels == rgb).all(-1).sum()

    assert count(paper) > pixels[:, :, 0].size / 2
    assert count(line) > 100
    assert count(other) == 0


@needs_chromium
@pytest.mark.parametrize("width", [360, 800, 1280])
def test_the_page_fits_its_window(text, width, tmp_path):
    """In a frame, because Chromium's own window is never as narrow as a phone."""
    frame = tmp_path / "frame.html"
    frame.write_text(
        f'<iframe width="{width}" height="800" srcdoc="{html.escape(text)}"></iframe><script>'
        'onload = () => { const page = document.querySelector("iframe").contentDocument;'
        "document.title = [page.documentElement.scrollWidth, page.fonts.size,"
        ' page.querySelectorAll("svg").length].join(); }</script>',
        "utf-8",
    )
    found = re.search(r"<title>(.*?)</title>", chromium(tmp_path, frame, "--dump-dom"))
    assert found[1] == f"{width},0,13"
