"""`python -m ngrpo.models.trim model=<directory> texts=<file.jsonl> out=<directory> common=4000`: a smaller vocabulary.

For experiments on small machines: most weights of a small model are a table whose rows a narrow task never uses. It keeps
the tokens of the texts (every string in the rows of a JSON-lines file), the first `common` tokens that the tokenizer
merges, special and byte tokens, and every token that a kept one is merged from. So texts of kept tokens are tokenized as
before, and others into more tokens. The model's logits on kept tokens do not change. `trimmed` in the new config.json says
what was cut.
"""

import json
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers.pre_tokenizers import ByteLevel
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from ngrpo.models import files, loading
from ngrpo.targets import SettingsError

COPIED = ("chat_template.jinja", "special_tokens_map.json")
BYTES = {*ByteLevel.alphabet(), *(f"<0x{byte:02X}>" for byte in range(256))}  # tokens that can spell any text


def trim(source: Path, texts: Sequence[str], common: int, out: Path) -> dict[str, Any]:
    """Writes model and tokenizer to `out` and returns `trimmed` of its config.json: `model` (a fingerprint), `tokens`, `of`.

    Raises ValueError where tokenizer.json has no BPE tokenizer.
    """
    tokenizer = loading.load_tokenizer(str(source))
    parts = json.loads((source / "tokenizer.json").read_bytes())
    if (kind := parts["model"].get("type")) != "BPE":
        raise SettingsError(f"model={source}: its tokenizer is {kind}, not BPE; choose another model")
    model: Any = AutoModelForCausalLM.from_pretrained(
        str(source), dtype="auto", use_safetensors=True, config=loading.read_config(str(source))
    )
    kept = kept_tokens(parts, tokenizer, texts, common, _named(model), len(model.get_input_embeddings().weight))
    model.config.trimmed = {"model": files.fingerprint(str(source)), "tokens": len(kept), "of": model.config.vocab_size}
    new_ids = {old: new for new, old in enumerate(kept)}
    cut_model(model, new_ids)
    model.save_pretrained(out)
    (out / "tokenizer.json").write_text(json.dumps(cut_tokenizer(parts, new_ids), ensure_ascii=False), "utf-8")
    _write_settings(source, out, new_ids)
    return dict(model.config.trimmed)


def kept_tokens(
    parts: Mapping[str, Any],
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    common: int,
    named: set[int],
    rows: int,
) -> list[int]:
    """Ascending ids. parts: of tokenizer.json; named: ids in the model's configurations; rows: of the table."""
    vocab, merges = parts["model"]["vocab"], _merges(parts)
    wanted = named | set(tokenizer.all_special_ids) | {vocab[piece] for piece in BYTES if piece in vocab}
    for text in texts:
        wanted |= set(tokenizer.encode(text, add_special_tokens=True))
    # Several merges may make the same piece.
    wanted |= {vocab[piece] for piece in list(dict.fromkeys(left + right for left, right in merges))[:common]}
    template = str(tokenizer.chat_template or "")
    wanted |= {added["id"] for added in parts["added_tokens"] if added["content"] in template}
    made_from: dict[str, list[str]] = {}
    for left, right in merges:
        made_from.setdefault(left + right, []).extend((left, right))
    pieces = {number: piece for piece, number in vocab.items()}
    waiting = [pieces[number] for number in wanted if number in pieces]
    while waiting:
        for part in made_from.get(waiting.pop(), ()):
            if vocab[part] not in wanted:
                wanted.add(vocab[part])
                waiting.append(part)
    return sorted(number for number in wanted if number < rows)


def cut_tokenizer(parts: Mapping[str, Any], new_ids: Mapping[int, int]) -> dict[str, Any]:
    """tokenizer.json with the kept tokens only, under their new ids."""
    vocab = {piece: new_ids[old] for piece, old in parts["model"]["vocab"].items() if old in new_ids}
    merges = [[left, right] for left, right in _merges(parts) if {left, right, left + right} <= vocab.keys()]
    added = [{**token, "id": new_ids[token["id"]]} for token in parts["added_tokens"] if token["id"] in new_ids]
    post_processor = _renumbered(parts.get("post_processor"), new_ids)
    model = {**parts["model"], "vocab": vocab, "merges": merges}
    return {**parts, "added_tokens": added, "model": model, "post_processor": post_processor}


@torch.no_grad()
def cut_model(model: PreTrainedModel, new_ids: Mapping[int, int]) -> None:
    """Leaves only the kept rows in table and head, and updates the ids in both configurations."""
    rows = torch.tensor(list(new_ids))
    head: Any = model.get_output_embeddings()
    for end in {model.get_input_embeddings().weight, head.weight, head.bias} - {None}:  # the first two may be one
        end[: len(rows)] = end[rows]
    model.resize_token_embeddings(len(rows))
    for settings in (model.config, model.generation_config):
        for name, value in vars(settings).copy().items():
            if name.endswith("_token_id") and value is not None:
                new = [new_ids[old] for old in value] if isinstance(value, list) else new_ids.get(value)
                setattr(settings, name, new)


def _named(model: PreTrainedModel) -> set[int]:
    """Ids of the tokens that begin, end and pad a text, in the model's two configurations."""
    values = [v for s in (model.config, model.generation_config) for n, v in vars(s).items() if n.endswith("_token_id")]
    return {one for value in values for one in (value if isinstance(value, list) else [value]) if isinstance(one, int)}


def _merges(parts: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Pairs, the most frequent first; older files have them as texts."""
    pairs = (pair.split(" ") if isinstance(pair, str) else pair for pair in parts["model"]["merges"])
    return [(left, right) for left, right in pairs]


def _renumbered(node: Any, new_ids: Mapping[int, int]) -> Any:
    """A post-processor with the new ids of its special tokens, which are all kept."""
    if isinstance(node, list):
        return [_renumbered(child, new_ids) for child in node]
    if not isinstance(node, dict):
        return node
    return {k: [new_ids[i] for i in v] if k == "ids" else _renumbered(v, new_ids) for k, v in node.items()}


def _write_settings(source: Path, out: Path, new_ids: Mapping[int, int]) -> None:
    """The other files of a tokenizer, with new ids where they name any."""
    settings = json.loads((source / "tokenizer_config.json").read_bytes())
    if added := settings.pop("added_tokens_decoder", None):
        left = {str(new_ids[int(old)]): token for old, token in added.items() if int(old) in new_ids}
        settings["added_tokens_decoder"] = left
    (out / "tokenizer_config.json").write_text(json.dumps(settings, indent=2, ensure_ascii=False), "utf-8")
    for name in COPIED:
        if (source / name).is_file():
            shutil.copy(source / name, out / name)


def changed(texts: Sequence[str], source: Path, out: Path) -> int:
    """How many of the texts the new tokenizer splits into other tokens than the old one."""
    old, new = loading.load_tokenizer(str(source)), loading.load_tokenizer(str(out))
    pairs = ([t.convert_ids_to_tokens(t.encode(text)) for t in (old, new)] for text in texts)
    return sum(before != after for before, after in pairs)


def strings(node: Any) -> Iterator[str]:
    """Every string in a row of a JSON-lines file, except keys."""
    if isinstance(node, str):
        yield node
    for child in node.values() if isinstance(node, dict) else node if isinstance(node, list) else ():
        yield from strings(child)


def main(arguments: Sequence[str]) -> None:
    """Takes `key=value` arguments, writes the directory and prints what was kept."""
    settings = {"common": "4000"} | {name: value for name, _, value in (word.partition("=") for word in arguments)}
    if wrong := set(settings) ^ {"model", "texts", "out", "common"}:
        raise SettingsError(f"{min(wrong)}: expected model=<directory> texts=<file.jsonl> out=<directory> common=4000")
    source, out = files.directory(settings["model"]), Path(settings["out"])
    if source is None or (refusal := files.refusal(settings["model"])):
        reason = "is no directory" if source is None else refusal
        raise SettingsError(f"model={settings['model']}: {reason}; model=<directory>")
    if not settings["common"].isdecimal():
        raise SettingsError(f"common={settings['common']}: must be a number of tokens, 0 or more; common=4000")
    if out.exists():
        raise SettingsError(f"out={out}: is already there; name another directory")
    try:
        lines = Path(settings["texts"]).read_text("utf-8").splitlines()
        texts = [text for line in lines if line.strip() for text in strings(json.loads(line))]
    except (OSError, ValueError) as error:
        raise SettingsError(f"texts={settings['texts']}: cannot be read ({error}); texts=<file.jsonl>") from None
    found = trim(source, texts, int(settings["common"]), out)
    print(f"{out}: {found['tokens']} of {found['of']} tokens")
    print(f"{changed(texts, source, out)} of {len(texts)} texts are read as other tokens")


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except SettingsError as error:
        print("error:", *str(error).split(), file=sys.stderr)
        sys.exit(2)
