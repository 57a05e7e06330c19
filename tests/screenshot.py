"""Take the picture of the playground that the documentation shows.

python -m tests.screenshot docs/images/playground.png
"""

from __future__ import annotations

import sys
from pathlib import Path

from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait

from llama_index_refine.commands.ui import SAMPLE_QUERIES
from llama_index_refine.demo.sample import load_sample, open_sample
from llama_index_refine.ui import launch
from tests.browser import chromium, missing

QUERY = "card delivery estimate"


def main() -> None:
    """Open the playground on the sample, refine one query, press one thumb, and take the picture."""
    reason = missing()
    if reason:
        sys.exit(f"needs {reason}")
    retriever = open_sample(path=Path(sys.argv[2]) if len(sys.argv) > 2 else None)
    queries = sorted((query.text for query in load_sample().queries), key=len)[:SAMPLE_QUERIES]
    page = launch(retriever, {"the sample's labels": retriever.grader}, queries, open_browser=False, block=False)
    with chromium(1440, 1480) as browser:
        wait = WebDriverWait(browser, 60)
        browser.get(page.local_url)
        wait.until(lambda _: browser.find_elements(By.CSS_SELECTOR, "#query textarea, #query input"))[0].send_keys(
            QUERY
        )
        browser.find_element(By.ID, "go").click()
        wait.until(lambda _: browser.find_elements(By.CSS_SELECTOR, "[data-list=refined] li"))
        browser.find_elements(By.CSS_SELECTOR, "[data-list=refined] li button.yes")[1].click()
        wait.until(lambda _: browser.find_elements(By.CSS_SELECTOR, "[aria-pressed=true]"))
        browser.execute_script("document.activeElement.blur()")
        browser.save_screenshot(sys.argv[1])
    page.close(verbose=False)


if __name__ == "__main__":
    main()
