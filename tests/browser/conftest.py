"""A headless Chromium that opens the pages as a reader does."""

import json
import shutil

import pytest
from compare.conftest import make  # noqa: F401

from browser.reader import Reader

ARGUMENTS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update",
    "--disable-sync", "--no-first-run", "--window-size=1280,900",
)  # fmt: skip


@pytest.fixture(scope="session")
def driver(tmp_path_factory):
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium")
    for argument in (*ARGUMENTS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options, webdriver.ChromeService(shutil.which("chromedriver")))
    yield driver
    driver.quit()


@pytest.fixture
def reader(driver):
    """Opens pages; at the end, nothing may have been asked from the network or complained about."""
    driver.get("about:blank")
    for log in ("browser", "performance"):
        driver.get_log(log)
    reader = Reader(driver)
    reader.show(dark=False, width=1280)
    yield reader
    complaints = driver.get_log("browser")
    messages = [json.loads(entry["message"])["message"] for entry in driver.get_log("performance")]
    asked = [m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"]
    assert complaints == []
    assert [url for url in asked if not url.startswith(("file:", "about:"))] == []
    assert len([url for url in asked if url.startswith("file:")]) == reader.opened
