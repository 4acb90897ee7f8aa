"""The web page as a visitor meets it, in headless Chromium: upload, result, words, an error, a phone's width."""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import open_clip
import pytest
from flag_words import words
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
CHROMIUM = ("chromium", "chromium-browser", "google-chrome")  # a system's own; else what playwright installed
PHONE, DESK = {"width": 390, "height": 844}, {"width": 1280, "height": 900}
SECONDS = 120
SERVE = """import sys, open_clip
open_clip.add_model_config(sys.argv[1])  # the tests' tiny architecture
from app.__main__ import main
main(sys.argv[2:])"""

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def browser():
    pytest.importorskip("gradio", reason="gradio is an extra: pip install -r requirements-app.txt")
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright drives the browser")
    found = next(filter(None, map(shutil.which, CHROMIUM)), None)
    with playwright.sync_playwright() as driver:
        if found is None and not Path(driver.chromium.executable_path).exists():
            pytest.skip("no Chromium is installed")
        chromium = driver.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.fixture(scope="module")
def address(browser, model_name, trained, weights, tmp_path_factory):
    """A page that shows a trained run beside unadapted CLIP."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    flags = words(run=trained, raw_clip=True, clip_weights=weights, port=port, text="steel bolt")
    folder = tmp_path_factory.mktemp("gradio")
    log = (folder / "log.txt").open("w")
    configs = tmp_path_factory.mktemp("configs")
    (configs / f"{model_name}.json").write_text(
        json.dumps(open_clip.get_model_config(model_name)), encoding="utf-8"
    )
    environment = dict(os.environ) | {"GRADIO_TEMP_DIR": str(folder), "OMP_NUM_THREADS": "1"}
    served = subprocess.Popen(
        [sys.executable, "-c", SERVE, str(configs), *flags], cwd=ROOT, env=environment, stdout=log, stderr=log
    )
    end = time.monotonic() + SECONDS
    while not answers(port):
        assert served.poll() is None and time.monotonic() < end, (folder / "log.txt").read_text()
        time.sleep(0.2)
    yield f"http://127.0.0.1:{port}"
    served.terminate()
    served.wait()
    log.close()


def answers(port):
    with socket.socket() as asked:
        return asked.connect_ex(("127.0.0.1", port)) == 0


@pytest.fixture
def files(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 255, (30, 50, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "photo.png")
    (tmp_path / "note.txt").write_text("no picture")
    return {"picture": tmp_path / "photo.png", "text": tmp_path / "note.txt"}


def opened(browser, address, size, chosen):
    """(page with some files uploaded, addresses outside this machine that it asked for)."""
    page, outside = browser.new_page(viewport=size), []
    page.set_default_timeout(1000 * SECONDS)
    page.on("request", lambda one: outside.append(one.url) if one.url.startswith("http") else None)
    page.goto(address)
    page.wait_for_selector("#score")
    page.set_input_files("input[type=file]", [str(file) for file in chosen])
    page.wait_for_selector(f"text={chosen[-1].stem}")
    return page, outside


@pytest.mark.parametrize("size", [DESK, PHONE], ids=["desk", "phone"])
def test_an_uploaded_picture_is_scored_by_both_and_its_words_are_told(browser, address, files, size):
    page, asked = opened(browser, address, size, [files["picture"], files["text"]])
    page.click("#score")
    page.wait_for_selector("text=note.txt is no picture that can be read, left out")
    assert page.locator("text=/ranked, not decided/").count() == 2
    assert page.locator("text=/photo.png: \\d\\.\\d{5}/").count() == 2
    heatmaps = page.locator(".gallery-item img, .grid-wrap img")
    heatmaps.first.wait_for()
    assert heatmaps.first.evaluate("picture => picture.naturalWidth") == 50
    page.click("#words")
    page.locator("table.numbers td", has_text="steel").first.wait_for()
    assert page.evaluate("document.documentElement.scrollWidth") <= size["width"]
    assert all(url.startswith(address) for url in asked)
    page.close()


def test_a_text_file_alone_is_refused_in_words(browser, address, files):
    page, _ = opened(browser, address, DESK, [files["text"]])
    page.click("#score")
    page.wait_for_selector("text=note.txt is no picture that can be read")
    assert page.locator("table.numbers").count() == 0
    page.close()


def test_a_typed_threshold_decides_and_nonsense_is_refused(browser, address, files):
    page, _ = opened(browser, address, DESK, [files["picture"]])
    field = page.get_by_label("Threshold")
    field.fill("-100")
    page.click("#score")
    page.wait_for_selector("text=1 of 1 anomalous")
    field.fill("high")
    page.click("#score")
    page.wait_for_selector("text=Threshold high: expected a number")
    page.close()
