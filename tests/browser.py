"""A real browser, without a window."""

from __future__ import annotations

import importlib.util
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

CHROMIUM = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), ""
)
DRIVER = shutil.which("chromedriver") or ""


def missing() -> str | None:
    """Say what has to be installed before there is a browser."""
    if not (CHROMIUM and DRIVER):
        return "a browser: apt-get install chromium chromium-driver"
    if importlib.util.find_spec("selenium") is None:
        return "the browser's client: pip install selenium"
    return None


@contextmanager
def chromium(width: int, height: int) -> Iterator[Any]:
    """Start Chromium with a fresh profile; its performance log tells every request it makes."""
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    # Under a short path: the browser makes sockets in its profile, whose names are limited in length.
    profile = tempfile.mkdtemp()
    for flag in (
        "headless",
        "no-sandbox",
        "disable-gpu",
        "disable-quic",
        "no-first-run",
        "disable-background-networking",
        "disable-component-update",
        "disable-sync",
        "disable-dev-shm-usage",
        "no-proxy-server",
        "hide-scrollbars",
        f"window-size={width},{height}",
        f"user-data-dir={profile}",
    ):
        options.add_argument(f"--{flag}")
    options.set_capability("goog:loggingPrefs", {"performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    try:
        yield driver
    finally:
        driver.quit()
        shutil.rmtree(profile, ignore_errors=True)
