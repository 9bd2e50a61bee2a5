"""CLIP's byte-pair tokenizer, read from and written to the published `tokenizer/` folder.

open_clip's own tokenizer does the work. A prior that knows few words ships only the merges that spell them, because
the embedding table of the full 49,408 tokens would outweigh the whole text tower.
"""

import copy
import functools
import gzip
import io
import itertools
import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diffusion.text.open_clip_import import ensure_open_clip_imports

START, END = "<start_of_text>", "<end_of_text>"
OPENAI_END = "<|endoftext|>"


class Tokenizer:
    """Sentences to token ids.

    Args:
        merges: byte-pair merges in rank order, such as ("r", "e"), ("re", "d</w>").
        context_length: ids a prompt.
        pad_with_end: prompts are filled up with the end token, as OpenAI's CLIP has it, and not with id 0, as open_clip.
    """

    def __init__(self, merges: Sequence[tuple[str, str]], context_length: int, *, pad_with_end: bool = False) -> None:
        ensure_open_clip_imports()
        from open_clip.tokenizer import SimpleTokenizer

        text = "\n".join(["#version: 0.2", *(" ".join(merge) for merge in merges)])
        self.merges = list(merges)
        self.context_length = context_length
        self.bpe = SimpleTokenizer(bpe_path=io.BytesIO(gzip.compress(text.encode())), context_length=context_length)
        self.pad_id = self.bpe.eot_token_id if pad_with_end else 0
        # Words of textual inversion in lower case -> their ids, past the end of the vocabulary.
        self._added: dict[str, list[int]] = {}

    @property
    def vocab_size(self) -> int:
        """512 byte tokens, the merges, start and end."""
        return self.bpe.vocab_size

    @property
    def end_id(self) -> int:
        """The id of the end token, which the words that textual inversion adds come after."""
        return self.bpe.eot_token_id

    def __call__(self, prompts: Sequence[str]) -> Tensor:
        """Token ids (B, context_length), int64: start, words, end, then padding; long prompts are cut before the end."""
        ids = torch.full((len(prompts), self.context_length), self.pad_id, dtype=torch.int64)
        for row, prompt in zip(ids, prompts, strict=True):
            words = self.encode(prompt)[: self.context_length - 2]
            row[: len(words) + 2] = torch.tensor([self.bpe.sot_token_id, *words, self.bpe.eot_token_id])
        return ids

    def encode(self, prompt: str) -> list[int]:
        """The ids of a prompt's words, however many; added words are found as whole words, in any case."""
        if not self._added:
            return self.bpe.encode(prompt)
        # Longest first, so that of <cat> and <cat>2 the longer one is found.
        names = "|".join(_as_whole_word(name) for name in sorted(self._added, key=len, reverse=True))
        pieces = re.split(f"({names})", prompt, flags=re.IGNORECASE)
        return [id for piece in pieces for id in (self._added.get(piece.lower()) or self.bpe.encode(piece))]

    def add(self, word: str, ids: Iterable[int]) -> None:
        """A word of textual inversion and its ids, past the end of the vocabulary."""
        self._added[word.lower()] = list(ids)

    def copy(self) -> "Tokenizer":
        """The same, to which words may be added that this one does not get."""
        copied = copy.copy(self)
        copied._added = dict(self._added)
        return copied

    def knows(self, word: str) -> bool:
        """Whether the word was added already, in any case."""
        return word.lower() in self._added

    def num_tokens(self, prompt: str) -> int:
        """Tokens that a prompt takes, start and end counted: more than `context_length` means that it will be cut."""
        return len(self.encode(prompt)) + 2

    @classmethod
    def for_words(cls, words: Iterable[str], context_length: int) -> "Tokenizer":
        """The full CLIP table cut down to the merges that spell `words`."""
        full = full_table()
        used: set[tuple[str, str]] = set()
        for word in sorted(set(words)):
            for piece in full.bpe.pat.findall(word):
                used |= merges_spelling("".join(full.bpe.byte_encoder[b] for b in piece.encode()), full.bpe.bpe_ranks)
        return cls([merge for merge in full.merges if merge in used], context_length)

    @classmethod
    def load(cls, folder: Path, *, context_length: int | None = None) -> "Tokenizer":
        """Reads `merges.txt` or the `tokenizer.json` that newer programs write in its place, and the configurations.

        Args:
            context_length: of the text tower, for folders whose tokenizer knows no length of its own.

        Raises:
            FileNotFoundError: a file is missing. ValueError: one is damaged, or nothing names a length.
        """
        merges = _read_merges(folder)
        config = _read_json(folder / "tokenizer_config.json")
        special = folder / "special_tokens_map.json"
        if special.exists():
            config |= _read_json(special)
        length = config.get("model_max_length")
        if context_length is not None and isinstance(length, int) and length > context_length:
            length = context_length  # 1e30 stands for "unknown"
        if not isinstance(length, int):
            raise ValueError(
                f"the tokenizer's model_max_length is {length!r}; expected a whole number; copy tokenizer_config.json again"
            )
        pad = config.get("pad_token", OPENAI_END)
        pad = pad["content"] if isinstance(pad, dict) else pad
        return cls(merges, length, pad_with_end=pad in (END, OPENAI_END))

    def save(self, folder: Path) -> None:
        """Writes the four files that transformers' CLIPTokenizer reads."""
        folder.mkdir(parents=True, exist_ok=True)
        merges = "\n".join(["#version: 0.2", *(" ".join(merge) for merge in self.merges)])
        pad = END if self.pad_id == self.bpe.eot_token_id else "!"
        special = {"bos_token": START, "eos_token": END, "unk_token": END, "pad_token": pad}
        files = {
            "merges.txt": merges,
            "vocab.json": json.dumps(self.bpe.encoder, ensure_ascii=False),
            "special_tokens_map.json": json.dumps(special, indent=2),
            "tokenizer_config.json": json.dumps(
                {
                    "tokenizer_class": "CLIPTokenizer",
                    "model_max_length": self.context_length,
                    "do_lower_case": True,
                    **special,
                },
                indent=2,
            ),
        }
        for name, text in files.items():
            (folder / name).write_text(text, encoding="utf-8")


def _as_whole_word(word: str) -> str:
    """A pattern that finds the word, but not inside a longer one: "art" is in "the art of", not in "heart"."""
    before, after = (r"(?<!\w)" if re.match(r"\w", word) else ""), (r"(?!\w)" if re.search(r"\w$", word) else "")
    return f"{before}{re.escape(word)}{after}"


def _read_merges(folder: Path) -> list[tuple[str, str]]:
    """The merges of `merges.txt`, one a line, or of `tokenizer.json`, where they are lines or pairs."""
    new = folder / "tokenizer.json"
    if (folder / "merges.txt").exists() or not new.exists():
        lines = (folder / "merges.txt").read_text(encoding="utf-8").split("\n")
        return [(a, b) for a, _, b in (line.partition(" ") for line in lines if line and not line.startswith("#version"))]
    merges = _read_json(new).get("model", {}).get("merges")
    if not isinstance(merges, list):
        raise ValueError("tokenizer.json holds no merges, as CLIP's does; copy the folder again")
    return [(a, b) for a, b in (merge.split(" ") if isinstance(merge, str) else merge for merge in merges)]


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path.name} is not readable JSON ({error}); copy the folder again") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path.name} holds a {type(content).__name__}; expected values by name; copy the folder again")
    return content


def merges_spelling(word: str, ranks: dict[tuple[str, str], int]) -> set[tuple[str, str]]:
    """The merges that byte-pair encoding applies to one word (Sennrich et al. 2016)."""
    symbols = [*word[:-1], word[-1] + "</w>"]
    used = set()
    while len(symbols) > 1:
        best = min(itertools.pairwise(symbols), key=lambda pair: ranks.get(pair, float("inf")))
        if best not in ranks:
            break
        used.add(best)
        merged, i = [], 0
        while i < len(symbols):
            if tuple(symbols[i : i + 2]) == best:
                merged.append(symbols[i] + symbols[i + 1])
                i += 2
            else:
                merged.append(symbols[i])
                i += 1
        symbols = merged
    return used


@functools.cache
def full_table() -> Tokenizer:
    """CLIP's published table, padded with id 0; shared, so add no words to it."""
    return Tokenizer(full_merges(), 77)


@functools.cache
def full_merges() -> tuple[tuple[str, str], ...]:
    """CLIP's published 48,894 merges, from open_clip's package data."""
    ensure_open_clip_imports()
    from open_clip.tokenizer import default_bpe

    with gzip.open(default_bpe(), "rt", encoding="utf-8") as file:
        lines = file.read().split("\n")[1 : 49152 - 256 - 2 + 1]
    return tuple((a, b) for a, _, b in (line.partition(" ") for line in lines))


def empty_tokens(tokenizer: Tokenizer, batch: int) -> Tensor:
    """Ids of the empty prompt, (batch, context_length): the unconditional text of classifier-free guidance."""
    return tokenizer([""]).expand(batch, -1).to(torch.int64)
