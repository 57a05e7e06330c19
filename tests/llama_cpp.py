"""llama.cpp's own server with a tiny reranker whose weights are random: `python -m tests.llama_cpp` prints its port."""

from __future__ import annotations

import socket
import sys
import tempfile
from pathlib import Path

import gguf
import numpy as np
import xllamacpp

SIZE, LAYERS, HEADS, INNER, CONTEXT = 32, 2, 2, 64, 256
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
LETTERS = "abcdefghijklmnopqrstuvwxyz"
# A word of any letters can be put together from these; U+2581 begins one.
WORDS = [*SPECIAL, *LETTERS, *(f"\u2581{sign}" for sign in LETTERS + ".,?0123456789")]


def write_reranker(path: Path) -> None:
    """Write a BERT with a head for ranking, in GGUF."""
    random = np.random.default_rng(0)
    writer = gguf.GGUFWriter(path, "bert")
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(SIZE)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(HEADS)
    writer.add_layer_norm_eps(1e-12)
    writer.add_causal_attention(False)
    writer.add_pooling_type(gguf.PoolingType.RANK)
    writer.add_tokenizer_model("bert")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(WORDS)
    kinds = [gguf.TokenType.CONTROL] * len(SPECIAL) + [gguf.TokenType.NORMAL] * (len(WORDS) - len(SPECIAL))
    writer.add_token_types(kinds)
    writer.add_token_type_count(2)
    writer.add_unk_token_id(1)
    writer.add_sep_token_id(3)
    writer.add_pad_token_id(0)
    writer.add_bos_token_id(2)
    writer.add_eos_token_id(3)

    def add(name: str, *shape: int) -> None:
        writer.add_tensor(name, random.normal(0, 0.3, shape).astype(np.float32))

    def norm(name: str) -> None:
        writer.add_tensor(f"{name}.weight", np.ones(SIZE, dtype=np.float32))
        add(f"{name}.bias", SIZE)

    def linear(name: str, rows: int, columns: int) -> None:
        add(f"{name}.weight", rows, columns)
        add(f"{name}.bias", rows)

    add("token_embd.weight", len(WORDS), SIZE)
    add("token_types.weight", 2, SIZE)
    add("position_embd.weight", CONTEXT, SIZE)
    norm("token_embd_norm")
    for layer in range(LAYERS):
        for name in ("attn_q", "attn_k", "attn_v", "attn_output"):
            linear(f"blk.{layer}.{name}", SIZE, SIZE)
        linear(f"blk.{layer}.ffn_up", INNER, SIZE)
        linear(f"blk.{layer}.ffn_down", SIZE, INNER)
        norm(f"blk.{layer}.attn_output_norm")
        norm(f"blk.{layer}.layer_output_norm")
    linear("cls", SIZE, SIZE)
    linear("cls.output", 1, SIZE)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def main() -> None:
    """Serve until standard input ends."""
    with tempfile.TemporaryDirectory() as folder, socket.socket() as free:
        write_reranker(Path(folder) / "reranker.gguf")
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        free.close()
        asked = xllamacpp.CommonParams()
        asked.model.path = str(Path(folder) / "reranker.gguf")
        asked.hostnames = ["127.0.0.1"]
        asked.port = port
        asked.n_ctx = asked.n_batch = asked.n_ubatch = CONTEXT
        asked.n_parallel = 1
        asked.embedding = True
        asked.pooling_type = xllamacpp.llama_pooling_type.LLAMA_POOLING_TYPE_RANK
        # It is up when it has been made.
        server = xllamacpp.Server(asked)
        sys.stdout.write(f"{port}\n")
        sys.stdout.flush()
        sys.stdin.read()
        del server


if __name__ == "__main__":
    main()
