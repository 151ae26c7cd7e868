"""From a training run to a network file and its card."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from model.card import ModelCard, file_sha256, read_card, write_card
from model.errors import ModelFileError
from model.extractor import Extractor
from model.importing import SFACE
from model.network_file import read_network, write_network
from model.networks import ARCHITECTURES
from model.runtime import open_network
from model.training.checkpoint import read_checkpoint


def average_weights(base: Mapping[str, Tensor], tuned: Mapping[str, Tensor], share: float) -> dict[str, Tensor]:
    """Return weights between those of two networks: ``share`` of the tuned ones, the rest of the base's.

    Fine-tuned weights and their base lie in one valley of the loss, and the middle of it is often better than both ends
    (Wortsman et al.: Robust fine-tuning of zero-shot models, CVPR 2022).

    Raises:
        ValueError: the weights are not of one architecture, or the share is not within 0 and 1.
    """
    if not 0 <= share <= 1:
        raise ValueError(f"a share lies between 0 and 1, not {share}")
    if base.keys() != tuned.keys():
        raise ValueError("the weights are of two architectures")
    return {
        name: torch.lerp(weight, tuned[name], share) if weight.is_floating_point() else tuned[name]
        for name, weight in base.items()
    }


def trained_network(state: dict[str, Any], base: Path | None, share: float) -> nn.Module:
    """Return the network of a checkpoint, averaged with its base where one is given.

    Raises:
        ModelFileError: the base is missing, or not the one that the run started from.
    """
    module = ARCHITECTURES[state["architecture"]]()
    weights = state["average"]
    if base is not None:
        card = read_card(base)
        started = state.get("base", card.identity)  # checkpoints of earlier versions do not say
        if started != card.identity:
            raise ModelFileError(f"the run started from {started or 'scratch'}, not from {card.identity} in {base}")
        weights = average_weights(read_network(base / card.file).state_dict(), weights, share)
    module.load_state_dict(weights)
    return module.eval()


def serving_extractor(network: nn.Module, folder: Path, *, half: bool) -> Extractor:
    """A network in evaluation mode as it is served, through a file in a folder; several times as fast as torch is.

    Args:
        network: of the form of `model.networks`.
        folder: takes the file; what an earlier call left there is written over.
        half: as `export_network`.
    """
    file = folder / "network.onnx"
    write_network(network, file, half=half)
    dimension = int(network.output_shapes["embedding"][1])  # type: ignore[index]
    return Extractor(open_network(file), replace(SFACE.card, dimension=dimension))


def export_network(
    checkpoint: Path, output: Path, *, base: Path | None, share: float = 1.0, data: str, licence: str, half: bool = True
) -> ModelCard:
    """Write network file and card of a training run; `facemodel evaluate --write-card` fills in the figures.

    Args:
        checkpoint: of the run.
        output: folder to write, whose name becomes the network's.
        base: folder of the extractor that the run started from; None where it started from scratch.
        share: of the tuned weights, the rest are the base's.
        data: what it was trained on and under what terms.
        licence: terms of the weights.
        half: store kernels and matrices in half precision.

    Raises:
        ModelFileError: no checkpoint, the base is missing or another one, there is a share without a base, or there is
            a network of this name already.
    """
    if (output / "card.json").exists():
        raise ModelFileError(f"{output} holds a network already; choose another name")
    state = read_checkpoint(checkpoint)
    if bool(state["config"]["network"]["base"]) != (base is not None):
        raise ModelFileError("give the base that the run started from, and none where it started from scratch")
    if base is None and share != 1:
        raise ModelFileError(
            f"{checkpoint} started from scratch: there is no base to average with; leave out the share"
        )
    module = trained_network(state, base, share)
    output.mkdir(parents=True, exist_ok=True)
    file = f"{output.name}.onnx"
    write_network(module, output / file, half=half)
    loss = state["config"]["loss"]
    losses = loss["classifier"] + ("" if loss["center"] == "none" else " + center loss")
    note = "thresholds are the base's; `facemodel evaluate` replaces them"
    if base is None:
        thresholds = SFACE.card.thresholds
        note = "thresholds are another network's: do not serve before `facemodel evaluate --write-card` replaced them"
        origin = f"trained from scratch with {losses}, {state['step']} steps"
        origin_sha256 = ""
    else:
        card = read_card(base)
        origin = (
            f"fine-tuned from {card.identity} with {losses}, {state['step']} steps; {share:.0%} of the tuned weights, "
            f"{1 - share:.0%} of the base's. Base: {card.origin}"
        )
        origin_sha256, thresholds = card.sha256, card.thresholds
    card = replace(
        SFACE.card,
        name=output.name,
        file=file,
        sha256=file_sha256(output / file),
        architecture=state["architecture"],
        dimension=int(module.output_shapes["embedding"][1]),  # type: ignore[index]
        origin=origin,
        source_sha256=origin_sha256,
        licence=licence,
        data=data,
        figures={"training": state["config"], "note": note},
        thresholds=thresholds,
    )
    write_card(card, output)
    return card
