"""Low-rank adapters (LoRA, arXiv 2106.09685) in a model, through peft: added, merged, written.

They have no dropout: sampling and replay must use the same network.
"""

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from torch import Tensor
from transformers import PreTrainedModel

from ngrpo.targets import SettingsError


class Adapters:
    """The adapters of a model, which are inside its layers. Not a module, so that parameters keep one set of names."""

    def __init__(self, model: PreTrainedModel, settings: Mapping[str, Any]):
        """settings: `r`, `alpha` and `target_modules`, as in peft's LoraConfig. Raises ValueError where the table or the head
        is among the targets, as both are also read directly, without the layers that adapters replace."""
        targets = settings["target_modules"]
        config = LoraConfig(
            r=settings["r"],
            lora_alpha=settings["alpha"],
            target_modules=targets if isinstance(targets, str) else list(targets),
        )
        with warnings.catch_warnings():  # peft uses a name that transformers has deprecated
            warnings.simplefilter("ignore", FutureWarning)
            self.peft: PeftModel = get_peft_model(model, config)  # pyright: ignore[reportAttributeAccessIssue]
        ends = (model.get_input_embeddings(), model.get_output_embeddings())
        if any(isinstance(end, LoraLayer) for end in ends):
            raise SettingsError(f"model.lora.target_modules={targets}: the embedding and the head take no adapters")

    def merged(self, name: str, value: Tensor) -> Tensor:
        """The weight of that name plus its adapter's product, or unchanged where it has none; nothing is modified."""
        place, layered, _ = name.rpartition(".base_layer.weight")
        return value + self.peft.get_base_model().get_submodule(place).get_delta_weight("default") if layered else value  # pyright: ignore

    def write(self, directory: Path) -> None:
        """Writes adapter_model.safetensors and adapter_config.json, which peft loads over the initial model."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # peft looks for the base model's vocabulary on the hub
            # Not from state_dict(), which would shard again what `gathered` has gathered.
            weights = dict(self.peft.named_parameters())
            self.peft.save_pretrained(str(directory), save_embedding_layers=False, state_dict=weights)
        (directory / "README.md").unlink(missing_ok=True)  # an empty model card
