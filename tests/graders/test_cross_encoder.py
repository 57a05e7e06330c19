"""CrossEncoderGrader on a real, tiny BERT built here from a configuration."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from llama_index.core.schema import ImageNode, MetadataMode, QueryBundle, TextNode

from llama_index_refine.graders.account import Account, Budget
from llama_index_refine.graders.cross_encoder import CrossEncoderGrader
from tests.images.pictures import base64_of, picture

pytest.importorskip("sentence_transformers")

from sentence_transformers import CrossEncoder
from transformers import BertConfig, BertForSequenceClassification, BertTokenizerFast

QUERY = QueryBundle("cats purr")
NODES = [TextNode(text=text) for text in ("cats purr", "rain", "cats rain purr softly " * 50)]


def build(folder: Path, labels: int) -> str:
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "cats", "purr", "rain", "softly"]
    (folder / "vocab.txt").write_text("\n".join(words))
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(words),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        max_position_embeddings=64,
        num_labels=labels,
    )
    BertForSequenceClassification(config).save_pretrained(folder)
    BertTokenizerFast(vocab_file=str(folder / "vocab.txt"), model_max_length=64).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
    return build(tmp_path_factory.mktemp("one"), labels=1)


def test_images_without_a_text_get_no_grade(model, tmp_path):
    image = base64_of(picture())
    nodes = [ImageNode(image=image), ImageNode(image=image, text="cats purr"), TextNode(text="cats purr")]
    account = Account()
    with account.active():
        nothing, *grades = CrossEncoderGrader(model).grade(QUERY, nodes)
    assert nothing is None
    assert grades[0] == pytest.approx(grades[1])
    assert account.failures == ["a cross-encoder reads texts, so images without one get no grade"]
    asked = QueryBundle("", image_path=str(tmp_path / "query.png"))
    assert CrossEncoderGrader(model).grade(asked, nodes) == [None] * 3


def test_grades_are_the_models_probabilities(model):
    grades = CrossEncoderGrader(model, batch_size=2).grade(QUERY, NODES)
    pairs = [(QUERY.query_str, node.text) for node in NODES]
    assert grades == pytest.approx(CrossEncoder(model).predict(pairs).tolist(), abs=1e-6)
    assert len(set(grades)) == 3


async def test_asynchronously_and_with_a_loaded_model(model):
    grader = CrossEncoderGrader(CrossEncoder(model))
    assert await grader.agrade(QUERY, NODES) == grader.grade(QUERY, NODES)
    assert grader.grade(QUERY, []) == []


def test_long_metadata_does_not_push_the_text_out(model):
    class Reading(CrossEncoder):
        def predict(self, inputs, *args, activation_fn=None, **kwargs):
            read.extend(text for _, text in inputs)
            return super().predict(inputs, *args, activation_fn=activation_fn, **kwargs)

    read: list[str] = []
    long, short = (TextNode(text="cats purr", metadata={"rain": "softly " * times}) for times in (100, 1))
    grades = CrossEncoderGrader(Reading(model)).grade(QUERY, [long, short])
    assert None not in grades
    assert read[0].startswith("cats purr\n\nrain: softly")
    assert read[1] == short.get_content(MetadataMode.EMBED)


def test_temperature_makes_milder_grades(model):
    sharp, mild = (CrossEncoderGrader(model, temperature=t).grade(QUERY, NODES) for t in (0.1, 10.0))
    assert all(abs(m - 0.5) < abs(s - 0.5) for m, s in zip(mild, sharp, strict=True))


def test_two_classes(tmp_path):
    folder = build(tmp_path, labels=2)
    grades = CrossEncoderGrader(folder).grade(QUERY, NODES)
    logits = CrossEncoder(folder).predict([(QUERY.query_str, node.text) for node in NODES], convert_to_tensor=True)
    assert grades == pytest.approx(torch.softmax(logits, 1)[:, 1].tolist(), abs=1e-6)


def test_more_classes_are_refused(tmp_path):
    with pytest.raises(ValueError, match="3 outputs"):
        CrossEncoderGrader(build(tmp_path, labels=3)).grade(QUERY, NODES)


async def test_given_up_at_the_deadline(model):
    account = Account(Budget(seconds=1e-9))
    with account.active():
        assert await CrossEncoderGrader(model).agrade(QUERY, NODES) == [None] * 3
    assert "deadline" in account.failures[0]


@pytest.mark.parametrize(("name", "value"), [("batch_size", 0), ("temperature", 0)])
def test_bad_arguments_are_named(model, name, value):
    with pytest.raises(ValueError, match=name):
        CrossEncoderGrader(model, **{name: value})


def test_fingerprint(model):
    assert CrossEncoderGrader(model).fingerprint() == CrossEncoderGrader(CrossEncoder(model)).fingerprint()
    assert CrossEncoderGrader(model).fingerprint() != CrossEncoderGrader(model, temperature=2).fingerprint()
