"""Low-rank adapters (LoRA, arXiv 2106.09685) inside a model, through peft: put in, merged, written.

There is no dropout in them: what was sampled and what is replayed must come
from the same network.
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
    """The adapters of one model, which are inside its layers; without them it is the model that was loaded.

    Not a module, so that the model's parameters keep one set of names.
    """

    def __init__(self, model: PreTrainedModel, settings: Mapping[str, Any]):
        """settings: `r`, `alpha`, `target_modules` as peft's LoraConfig names them. Raises ValueError for the table or
        the head among the targets, as both are read outside of the layers that adapters replace."""
        targets = settings["target_modules"]
        config = LoraConfig(
            r=settings["r"],
            lora_alpha=settings["alpha"],
            target_modules=targets if isinstance(targets, str) else list(targets),
        )
        with warnings.catch_warnings():  # peft asks the model by a name that transformers has changed
            warnings.simplefilter("ignore", FutureWarning)
            self.peft: PeftModel = get_peft_model(model, config)  # pyright: ignore[reportAttributeAccessIssue]
        ends = (model.get_input_embeddings(), model.get_output_embeddings())
        if any(isinstance(end, LoraLayer) for end in ends):
            raise SettingsError(f"model.lora.target_modules={targets}: the embedding and the head take no adapters")

    def merged(self, name: str, value: Tensor) -> Tensor:
        """The weight of that name with what its adapter adds to it; any other as it is. Nothing here changes."""
        place, layered, _ = name.rpartition(".base_layer.weight")
        return value + self.peft.get_base_model().get_submodule(place).get_delta_weight("default") if layered else value  # pyright: ignore

    def write(self, directory: Path) -> None:
        """adapter_model.safetensors and adapter_config.json, as peft loads them over the model trained from."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # peft looks for the base model's vocabulary on the hub
            # Named one by one: state_dict() would take apart what ranks have put together.
            weights = dict(self.peft.named_parameters())
            self.peft.save_pretrained(str(directory), save_embedding_layers=False, state_dict=weights)
        (directory / "README.md").unlink(missing_ok=True)  # a model card with nothing filled in
