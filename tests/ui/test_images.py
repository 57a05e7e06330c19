"""Pictures in the playground, in a real browser."""

from __future__ import annotations

import json

import pytest
from qdrant_client import QdrantClient, models

from llama_index_refine import RefinedRetriever
from tests.browser import chromium, missing
from tests.images.pictures import base64_of
from tests.images.small_pictures import PICTURES, PixelEmbedding, draw
from tests.images.test_retrieving import SquareGrader

pytest.importorskip("gradio", reason="needs the extra ui")

from llama_index_refine.ui import launch

HOSTILE = '"><img src=x onerror="document.title=1">'


def test_thumbnails_are_drawn_and_an_address_is_not_loaded(tmp_path):
    if reason := missing():
        pytest.skip(f"needs {reason}")
    from selenium.webdriver.common.by import By
    from selenium.webdriver.support.ui import WebDriverWait

    client = QdrantClient(":memory:")
    client.create_collection("pictures", models.VectorParams(size=192, distance=models.Distance.COSINE))
    points = []
    for at, picture in enumerate(PICTURES):
        # Half of them are somewhere else.
        image = f"http://127.0.0.1:9/{at}.png{HOSTILE}" if at % 2 else base64_of(draw(*picture))
        vector = PixelEmbedding()._get_text_embedding(picture[0])
        payload = {"image": image, "square": picture[0], "caption": HOSTILE if at == 0 else ""}
        points.append(models.PointStruct(id=at, vector=vector, payload=payload))
    client.upsert("pictures", points)
    retriever = RefinedRetriever.from_collection(
        client, "pictures", "caption", image_key="image", embed_model=PixelEmbedding(), grader=SquareGrader(),
        similarity_top_k=12, feedback_top_k=8, rounds=1,
    )  # fmt: skip
    page = launch(retriever, {"labels": SquareGrader()}, ["red"], open_browser=False, block=False)
    try:
        with chromium(1440, 1000) as browser:
            browser.get(page.local_url)
            box = WebDriverWait(browser, 60).until(
                lambda _: browser.find_elements(By.CSS_SELECTOR, "#query input, #query textarea")
            )[0]
            box.send_keys("red")
            browser.find_element(By.ID, "go").click()
            shown = WebDriverWait(browser, 60).until(
                lambda _: browser.find_elements(By.CSS_SELECTOR, "[data-list=refined] img")
            )
            assert len(shown) == 6
            assert all(browser.execute_script("return arguments[0].naturalWidth", image) == 8 for image in shown)
            assert all(30 < image.size["width"] <= 96 for image in shown)
            assert "http://127.0.0.1:9/1.png" in browser.find_element(By.ID, "results").text
            assert browser.title != "1"
            browser.save_screenshot(str(tmp_path / "page.png"))
            requested = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    finally:
        page.close(verbose=False)
    urls = [event["params"]["request"]["url"] for event in requested if event["method"] == "Network.requestWillBeSent"]
    assert any(url.startswith(page.local_url) for url in urls)
    assert not [url for url in urls if url.startswith("http") and not url.startswith(page.local_url.rstrip("/"))]
