import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from model import cli
from model.card import read_card
from model.errors import ModelFileError
from model.extractor import Extractor
from model.network_file import read_network
from model.networks import ResidualFace
from model.pipeline import WEIGHTS
from model.training.checkpoint import CHECKPOINT
from model.training.exporting import average_weights, export_network
from model.training.loop import Training
from model.training.preparation import PreparedFolder, read_prepared, write_manifest
from model.training.training_set import split_identities
from tests.model.training.conftest import training_config


def checkpoint(colours: PreparedFolder, folder: Path, network: torch.nn.Module, base: str = "") -> Path:
    config = training_config(data={"folders": [str(colours.folder)]}, network={"base": base})
    split = split_identities([colours], validation_people=4, test_people=0, seed=0)
    identity = read_card(WEIGHTS / base).identity if base else ""
    Training(network, split, config, folder, base=identity).save()
    return folder / CHECKPOINT


def test_the_average_lies_between_both_ends() -> None:
    base, tuned = (
        {"w": torch.tensor([0.0, 4.0]), "n": torch.tensor(1)},
        {"w": torch.tensor([4.0, 0.0]), "n": torch.tensor(5)},
    )

    average = average_weights(base, tuned, 0.25)

    assert average["w"].tolist() == [1.0, 3.0]
    assert average["n"].item() == 5


def test_weights_of_two_architectures_have_no_average() -> None:
    with pytest.raises(ValueError, match="two architectures"):
        average_weights({"a": torch.zeros(1)}, {"b": torch.zeros(1)}, 0.5)


def test_a_network_from_scratch_serves_what_was_trained(colours: PreparedFolder, tmp_path: Path) -> None:
    torch.manual_seed(1)
    network = ResidualFace()
    path = checkpoint(colours, tmp_path, network)

    card = export_network(
        path, tmp_path / "mine", base=None, data="colours, for nothing", licence="CC0-1.0", half=False
    )

    crops = np.random.default_rng(0).integers(0, 256, (3, 112, 112, 3)).astype(np.uint8)
    served = Extractor.load(tmp_path / "mine", threads=1).embed(crops)
    with torch.inference_mode():
        trained = torch.nn.functional.normalize(network.eval()(torch.from_numpy(crops).permute(0, 3, 1, 2).float()))
    np.testing.assert_allclose(served, trained.numpy(), atol=2e-4)
    assert (card.name, card.architecture, card.dimension, card.licence) == ("mine", "ResidualFace", 128, "CC0-1.0")
    assert read_card(tmp_path / "mine") == card
    assert "do not serve" in card.figures["note"]


def test_nothing_tuned_gives_the_base_again(colours: PreparedFolder, tmp_path: Path) -> None:
    base = WEIGHTS / "sface"
    path = checkpoint(colours, tmp_path, read_network(base / "sface.onnx"), base="sface")

    export_network(path, tmp_path / "same", base=base, share=0.5, data="nothing", licence="Apache-2.0")

    one, other = (read_network(path).state_dict() for path in (base / "sface.onnx", tmp_path / "same" / "same.onnx"))
    for name, value in one.items():
        torch.testing.assert_close(other[name], value, rtol=1e-3, atol=1e-6)
    assert read_card(tmp_path / "same").source_sha256 == read_card(base).sha256
    assert read_card(tmp_path / "same").thresholds == read_card(base).thresholds


def test_a_network_is_never_written_over(colours: PreparedFolder, tmp_path: Path) -> None:
    path = checkpoint(colours, tmp_path, ResidualFace())
    export_network(path, tmp_path / "mine", base=None, data="", licence="")

    with pytest.raises(ModelFileError, match="holds a network already"):
        export_network(path, tmp_path / "mine", base=None, data="", licence="")


def test_the_base_must_be_given_where_there_was_one(colours: PreparedFolder, tmp_path: Path) -> None:
    path = checkpoint(colours, tmp_path, ResidualFace())

    with pytest.raises(ModelFileError, match="give the base"):
        export_network(path, tmp_path / "mine", base=WEIGHTS / "sface", data="", licence="")


def test_another_base_of_the_same_architecture_is_refused(
    colours: PreparedFolder, tmp_path: Path, two_extractors: Path
) -> None:
    path = checkpoint(colours, tmp_path, read_network(WEIGHTS / "sface" / "sface.onnx"), base="sface")

    with pytest.raises(ModelFileError, match=r"started from sface@\w+, not from other@"):
        export_network(path, tmp_path / "mine", base=two_extractors / "other", share=0.5, data="", licence="")
    assert not (tmp_path / "mine").exists()


def test_a_checkpoint_that_does_not_say_its_base_is_exported(colours: PreparedFolder, tmp_path: Path) -> None:
    path = checkpoint(colours, tmp_path, read_network(WEIGHTS / "sface" / "sface.onnx"), base="sface")
    state = torch.load(path, weights_only=True)
    del state["base"]
    torch.save(state, path)

    export_network(path, tmp_path / "mine", base=WEIGHTS / "sface", share=0.5, data="", licence="")

    assert read_card(tmp_path / "mine").architecture == "SFace"


def test_from_scratch_there_is_nothing_to_share_with(colours: PreparedFolder, tmp_path: Path) -> None:
    path = checkpoint(colours, tmp_path, ResidualFace())

    with pytest.raises(ModelFileError, match="no base to average with"):
        export_network(path, tmp_path / "mine", base=None, share=0.3, data="", licence="")
    assert not (tmp_path / "mine").exists()


def test_what_is_no_checkpoint_is_refused(tmp_path: Path) -> None:
    path = tmp_path / CHECKPOINT
    path.write_bytes(b"no checkpoint")
    with pytest.raises(ModelFileError, match="is not a checkpoint"):
        export_network(path, tmp_path / "mine", base=None, data="", licence="")

    for foreign in ({"state_dict": {}, "epoch": 1}, {"step": 1, "config": {}}, [1, 2]):
        torch.save(foreign, path)
        with pytest.raises(ModelFileError, match="is not a checkpoint"):
            export_network(path, tmp_path / "mine", base=None, data="", licence="")


def test_shares_measures_each_average_on_the_people_kept_out(
    colours: PreparedFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = read_network(WEIGHTS / "sface" / "sface.onnx")
    tuned = read_network(WEIGHTS / "sface" / "sface.onnx")
    torch.nn.init.normal_(next(tuned.get_submodule("fc").parameters()))
    checkpoint(colours, tmp_path / "same", base, base="sface")
    checkpoint(colours, tmp_path / "spoilt", tuned, base="sface")

    rows = {}
    for run in ("same", "spoilt"):
        with pytest.raises(SystemExit, match="0"):
            cli.main(["shares", str(tmp_path / run), "--share", "0", "--share", "1", "--photos", "6"])
        rows[run] = [line.split(" | ")[1:] for line in capsys.readouterr().out.splitlines()[2:]]

    same, spoilt = rows["same"], rows["spoilt"]
    assert same[0] == same[1] == spoilt[0]
    assert spoilt[1] != spoilt[0]


def test_shares_leaves_out_a_folder_with_too_few_people(
    colours: PreparedFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    shutil.copytree(colours.folder, one)
    shutil.copytree(colours.folder, other)
    strangers = [replace(photo, person=f"another {photo.person}") for photo in colours.photos]
    write_manifest(other, strangers, np.array(colours.embeddings))
    folders = [read_prepared(one), read_prepared(other)]
    config = training_config(data={"folders": [str(one), str(other)], "validation_people": 1})
    split = split_identities(folders, validation_people=1, test_people=0, seed=0)
    Training(ResidualFace(), split, config, tmp_path).save()

    with pytest.raises(SystemExit, match="0"):
        cli.main(["shares", str(tmp_path)])
    printed = capsys.readouterr()
    assert printed.out.splitlines()[0] == "| share | all, clean | all, degraded |"
    assert "one alone has no columns: the figures need two people" in " ".join(printed.err.split())

    config = training_config(data={"folders": [str(one)], "validation_people": 1})
    Training(
        ResidualFace(), split_identities(folders[:1], validation_people=1, test_people=0, seed=0), config, tmp_path
    ).save()
    with pytest.raises(SystemExit, match="1"):
        cli.main(["shares", str(tmp_path)])
    assert "too few photos were kept for validation" in capsys.readouterr().err


def test_a_run_from_scratch_has_one_row_and_no_shares(
    colours: PreparedFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint(colours, tmp_path, ResidualFace())

    with pytest.raises(SystemExit, match="0"):
        cli.main(["shares", str(tmp_path)])
    assert [line.split(" | ")[0] for line in capsys.readouterr().out.splitlines()[2:]] == ["| 100%"]
    with pytest.raises(SystemExit, match="1"):
        cli.main(["shares", str(tmp_path), "--share", "0.5"])
