"""Data sets by name, fetched and cached by the `datasets` library."""

from __future__ import annotations

import json
import random
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from llama_index_refine.evaluation.datasets import Dataset, Document, Query

_KEY_POINTS = "https://raw.githubusercontent.com/IBM/KPA_2021_shared_task/main/kpm_data"
_INTENTS = "https://raw.githubusercontent.com/IBM/task-aware-embedding-refinement/main/data/clinc150"
_SCHOLAR_DOCUMENTS = 25_000


class DatasetUnavailable(RuntimeError):
    """A data set's files could not be fetched; the message says what to do."""


def load_named(name: str, source: str | None = None) -> Dataset:
    """Load one of `NAMED`.

    :param name: its name, in lower case.
    :param source: a repository or folder with the same files, if not the usual one.
    :raises DatasetUnavailable: the files could not be fetched.
    :raises ImportError: the `datasets` library is missing.
    """
    load, usual = NAMED[name]
    try:
        import datasets  # type: ignore[import-untyped]  # noqa: F401
    except ImportError as error:
        raise ImportError('data sets by name need: pip install "llama-index-refine[bench]"') from error
    try:
        return replace(load(source or usual), name=name)
    except Exception as error:
        if not _is_network_error(error):
            raise
        raise DatasetUnavailable(
            f"{name} could not be fetched from {source or usual} ({type(error).__name__}). Run once with a "
            "network, after which it is cached in HF_HOME; or copy that cache here; or, instead of the name, give a "
            "folder with corpus.jsonl, queries.jsonl and qrels/test.tsv"
        ) from error


def _is_network_error(error: BaseException | None) -> bool:
    """Whether the cause is a file that could not be reached: the libraries raise many types for that."""
    while error is not None:
        module = type(error).__module__.partition(".")[0]
        if isinstance(error, OSError) or module in ("httpx", "requests", "huggingface_hub", "aiohttp", "urllib3"):
            return True
        if type(error).__name__ in ("DatasetNotFoundError", "OfflineModeIsEnabled", "DataFilesNotFoundError"):
            return True
        error = error.__cause__ or error.__context__
    return False


def _table(source: str, config: str, split: str = "test") -> Any:
    """One table of a repository, in the split asked for or its only one."""
    from datasets import load_dataset

    tables = load_dataset(source, config)
    return tables[split] if split in tables else next(iter(tables.values()))


def _labels(source: str) -> dict[str, dict[str, float]]:
    """The labels, which stand in the configuration `default` of older and `qrels` of newer repositories."""
    from datasets import get_dataset_config_names

    qrels: dict[str, dict[str, float]] = {}
    for row in _table(source, "qrels" if "qrels" in get_dataset_config_names(source) else "default"):
        qrels.setdefault(str(row["query-id"]), {})[str(row["corpus-id"])] = float(row["score"])
    return qrels


def _csv(source: str, name: str) -> Any:
    from datasets import load_dataset

    return load_dataset("csv", data_files=f"{source}/{name}", split="train")


def _id(row: Mapping[str, Any]) -> str:
    return str(row["_id"] if "_id" in row else row["id"])


def _titled(row: Mapping[str, Any]) -> str:
    return f"{row.get('title') or ''} {row['text']}".strip()


def _retrieval(source: str) -> Dataset:
    """A repository with the configurations `corpus`, `queries` and the labels."""
    qrels = _labels(source)
    documents = [Document(_id(row), _titled(row)) for row in _table(source, "corpus")]
    queries = [Query(_id(row), row["text"]) for row in _table(source, "queries") if _id(row) in qrels]
    return Dataset(source, documents, queries, qrels)


def _arguana(source: str) -> Dataset:
    """Every query is itself a document and must not find itself."""
    data = _retrieval(source)
    return replace(data, queries=[replace(query, exclude=query.id) for query in data.queries])


def _banking77(source: str) -> Dataset:
    """The query is an intent's name, the documents are the utterances of both splits."""
    from datasets import load_dataset

    splits = load_dataset(source)
    rows = [(row["text"], row["label_text"]) for split in ("train", "test") for row in splits[split]]
    return _intents(source, rows, lambda intent: intent.replace("_", " "))


def _clinc150(source: str) -> Dataset:
    """The query describes an intent; without the out-of-scope utterances.

    The utterances are the `plus` configuration's train split, the descriptions those of the published measurement.
    """
    descriptions_at = source if Path(source).is_dir() else _INTENTS
    described = {
        row["intent_name"]: row["intent_description"].strip()
        for row in _csv(descriptions_at, "clinc150_intent_mapping.csv")
    }
    table = _table(source, "plus", "train")
    names = table.features["intent"].names
    rows = [(row["text"], names[row["intent"]]) for row in table]
    return _intents(source, [row for row in rows if row[1] != "oos"], lambda intent: described[intent])


def _intents(source: str, rows: Sequence[tuple[str, str]], query_text: Callable[[str], str]) -> Dataset:
    documents = [Document(f"d{i}", text) for i, (text, _) in enumerate(rows)]
    intents = list(dict.fromkeys(intent for _, intent in rows))
    qrels: dict[str, dict[str, float]] = {intent: {} for intent in intents}
    for document, (_, intent) in zip(documents, rows, strict=True):
        qrels[intent][document.id] = 1
    return Dataset(source, documents, [Query(intent, query_text(intent)) for intent in intents], qrels)


def _argkp21(source: str) -> Dataset:
    """The query is a key point; it searches the arguments of its own topic and stance. Train and dev together."""
    documents: list[Document] = []
    queries: list[Query] = []
    qrels: dict[str, dict[str, float]] = {}
    for split in ("train", "dev"):
        for row in _csv(source, f"arguments_{split}.csv"):
            documents.append(Document(row["arg_id"], row["argument"], (f"{row['topic']}|{row['stance']}",)))
        for row in _csv(source, f"key_points_{split}.csv"):
            queries.append(Query(row["key_point_id"], row["key_point"], f"{row['topic']}|{row['stance']}"))
        for row in _csv(source, f"labels_{split}.csv"):
            qrels.setdefault(row["key_point_id"], {})[row["arg_id"]] = float(row["label"])
    return Dataset(source, documents, queries, qrels)


def _followir(source: str) -> Dataset:
    """Queries with an instruction, as given and as changed; each searches its own candidates."""
    qrels = _labels(source)
    instructions = {str(row["query-id"]): row["instruction"] for row in _table(source, "instruction")}
    candidates = {str(row["query-id"]): row["corpus-ids"] for row in _table(source, "top_ranked")}
    groups: dict[str, list[str]] = {}
    for query, documents in candidates.items():
        for document in documents:
            groups.setdefault(str(document), []).append(query)
    corpus = [Document(_id(row), _titled(row), tuple(groups.get(_id(row), ()))) for row in _table(source, "corpus")]
    queries = [
        Query(_id(row), f"{row['text']}\n{instructions[_id(row)]}", group=_id(row) if _id(row) in candidates else None)
        for row in _table(source, "queries")
        if _id(row) in qrels
    ]
    changed = {str(row["query-id"]): list(map(str, row["corpus-ids"])) for row in _table(source, "qrel_diff")}
    return Dataset(source, corpus, queries, qrels, changed=changed)


def _real_scholar_query(source: str) -> Dataset:
    """Questions about computer science papers; abstracts of all relevant papers and a sample of the others."""
    titles = json.loads(_file(source, "paper_database/id2paper.json").read_text(encoding="utf-8"))
    tests = _file(source, "RealScholarQuery/test.jsonl").read_text(encoding="utf-8").splitlines()
    questions = [json.loads(line) for line in tests]
    abstracts = dict(_abstracts(_file(source, "paper_database/cs_paper_2nd.zip"), {t: i for i, t in titles.items()}))
    qrels = {
        f"q{i}": {paper: 1 for paper in question["answer_arxiv_id"] if paper in abstracts}
        for i, question in enumerate(questions)
    }
    relevant = sorted({paper for papers in qrels.values() for paper in papers})
    others = sorted(set(abstracts) - set(relevant))
    kept = random.Random(42).sample(others, min(len(others), max(0, _SCHOLAR_DOCUMENTS - len(relevant))))
    documents = [Document(paper, abstracts[paper]) for paper in [*relevant, *kept]]
    return Dataset(source, documents, [Query(f"q{i}", q["question"]) for i, q in enumerate(questions)], qrels)


def _abstracts(archive: Path, ids: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    with zipfile.ZipFile(archive) as papers:
        for name in papers.namelist():
            if name.endswith("/"):
                continue
            paper = json.loads(papers.read(name))
            if paper["title"] in ids and paper.get("abstract"):
                yield ids[paper["title"]], paper["abstract"]


def _file(source: str, name: str) -> Path:
    if (local := Path(source) / name).is_file():
        return local
    from huggingface_hub import hf_hub_download

    return Path(hf_hub_download(source, name, repo_type="dataset"))


NAMED: dict[str, tuple[Callable[[str], Dataset], str]] = {
    "scifact": (_retrieval, "mteb/scifact"),
    "nfcorpus": (_retrieval, "mteb/nfcorpus"),
    "realscholarquery": (_real_scholar_query, "CarlanLark/pasa-dataset"),
    "banking77": (_banking77, "mteb/banking77"),
    "clinc150": (_clinc150, "clinc/clinc_oos"),
    "argkp21": (_argkp21, _KEY_POINTS),
    "arguana": (_arguana, "mteb/arguana"),
    "followir-core17": (_followir, "mteb/Core17InstructionRetrieval"),
    "followir-news21": (_followir, "mteb/News21InstructionRetrieval"),
    "followir-robust04": (_followir, "mteb/Robust04InstructionRetrieval"),
}
