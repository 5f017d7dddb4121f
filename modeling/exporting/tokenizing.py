"""How texts become tokens without transformers: its tokenizer is asked once, and compared with the plain one."""

from __future__ import annotations

import hashlib
import tempfile
from pathlib import Path
from typing import Any

import transformers
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerBase

from ..configuration_pwl import PWLConfig
from ..errors import SaveError
from ..graphs.tokenization import Tokenization
from ..repository.layout import CONFIG_FILE
from ..repository.processing import fetch_those_there
from ..repository.source import Repository
from ..task_names import TOKENIZER_FILE, TOKENIZER_FILES

# Words, cases, accents, scripts, blanks and what some normalisers drop: what one pipeline may treat as no other does.
_TEXTS = (
    "",
    " ",
    "The Quick brown fox's 1,984 naïve cafés: {x} != [y]  mañana 東京 é\t#42\n",
    "ALL CAPS, l'été d'İstanbul — “quotes” … ﬁn ½ ١٢٣ 👩‍👩‍👧 \u200b\u00a0\u0000\ufffd",
    "  leading, trailing and   many blanks  \r\n\r\n",
    "Ελληνικά русский עברית العربية हिन्दी ไทย 한국어 ｆｕｌｌ",
    "hyper-text_transfer@example.org/path?x=1&y=%20 <b>bold</b> $9.99 (a+b)^2",
    "a" * 300,
)


def tokenization_of(repository: Repository, config: PWLConfig) -> Tokenization | None:
    """What the runtime needs to make transformers' tokens of the repository's `tokenizer.json`; None if it has none.

    Args:
        repository: The repository.
        config: The model's config.

    Raises:
        SaveError: If transformers cannot open the tokenizer, or makes other tokens than `tokenizer.json` does.
    """
    found = fetch_those_there(TOKENIZER_FILES, repository.fetch_text)
    if TOKENIZER_FILE not in found:
        return None
    # 1. transformers' own, of these very files.
    with tempfile.TemporaryDirectory() as folder:
        for name, content in {**found, CONFIG_FILE: repository.fetch_text(CONFIG_FILE)}.items():
            Path(folder, name).write_bytes(content)
        try:
            tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
        except Exception as error:  # whatever a tokenizer of these files runs into
            raise SaveError(
                f"nothing was written: transformers cannot open the tokenizer of {repository}, "
                f"{type(error).__name__}: {error}"
            ) from error
    # 2. The same tokens without it.
    plain = Tokenizer.from_str(found[TOKENIZER_FILE].decode("utf-8"))
    plain.no_truncation()
    plain.no_padding()
    plain.encode_special_tokens = bool(tokenizer.split_special_tokens)
    _compare(tokenizer, plain, repository)
    # 3. What it is set to.
    padding = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else config.teacher_config.pad_token_id
    return Tokenization(
        sha256=hashlib.sha256(found[TOKENIZER_FILE]).hexdigest(),
        inputs=tuple(tokenizer.model_input_names),
        padding_side=tokenizer.padding_side,
        truncation_side=tokenizer.truncation_side,
        pad_token_id=padding or 0,
        pad_token_type_id=tokenizer.pad_token_type_id,
        unk_token_id=tokenizer.unk_token_id,
        splits_special_tokens=bool(tokenizer.split_special_tokens),
        max_length=config.max_tokens_of(tokenizer),
    )


def _compare(tokenizer: PreTrainedTokenizerBase, plain: Any, repository: Repository) -> None:
    """Refuse a `tokenizer.json` of which transformers makes something else, as its classes may by their settings."""
    words = sorted(plain.get_vocab())
    some = [word for word in words[:: max(1, len(words) // 200)] if word.isprintable()]
    special = [token.content for token in plain.get_added_tokens_decoder().values()]
    joined = (" ".join(some), " ".join(some).title(), f"x{'y '.join(special)} z", *special[:100])
    for text in (*_TEXTS, *joined):
        for pair in (None, "and another"):
            own = tokenizer(text, pair, return_token_type_ids=True)
            encoding = plain.encode(text, pair)
            if (list(own["input_ids"]), list(own["token_type_ids"])) != (encoding.ids, encoding.type_ids):
                raise SaveError(
                    f"nothing was written: {TOKENIZER_FILE} of {repository} makes {encoding.ids[:20]} of "
                    f"{text!r:.100}, {type(tokenizer).__name__} of transformers {list(own['input_ids'])[:20]}: save "
                    "the tokenizer by its save_pretrained, and export again"
                )
