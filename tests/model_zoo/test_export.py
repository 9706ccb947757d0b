"""Files of networks: they equal the network, say what they need, and appear whole or not at all."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision  # noqa: F401  (its operators are in TorchScript files)

pytest.importorskip("onnx", reason="onnx is not installed")
pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")

import onnx
import onnxruntime

from pffnet_d2 import Predictor
from pffnet_d2.cli.main import main
from pffnet_d2.config import config_path, read_config
from pffnet_d2.data.synthetic import synthetic_image
from pffnet_d2.errors import InputError
from pffnet_d2.inference.model_config import config_of
from pffnet_d2.inference.options import ModelOptions
from pffnet_d2.model_zoo import export
from pffnet_d2.model_zoo.facts import TABLE, ModelFacts
from pffnet_d2.model_zoo.find import sha256
from pffnet_d2.model_zoo.package import package_model
from pffnet_d2.modeling.build import build_network

pytestmark = pytest.mark.usefixtures("leave_no_trace")


def config(folder: Path, *opts: str) -> Any:
    return config_of(ModelOptions(model=folder, device="cpu", opts=opts))


def read(path: Path) -> tuple[Any, dict[str, Any]]:
    """A session, and the table of the file."""
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return session, json.loads(session.get_modelmeta().custom_metadata_map[TABLE])


def test_the_table(onnx_run: Path) -> None:
    session, table = read(onnx_run / "model.onnx")
    (given,) = session.get_inputs()
    assert (given.name, given.type, given.shape) == ("image", "tensor(float)", [3, "height", "width"])
    assert [output.name for output in session.get_outputs()] == [
        "boxes",
        "class_scores",
        "mask_quality",
        "scores",
        "masks",
        "capped",
    ]
    facts = ModelFacts.from_info(table["facts"])
    assert facts == ModelFacts.from_config(config(onnx_run), 32)
    assert (facts.rule.score_threshold, facts.diameter, facts.images) == (0.01, 20.0, "fluorescence")
    with pytest.raises(InputError, match="damaged; export the model again"):
        ModelFacts.from_info({**table["facts"], "images": "x-ray"})
    assert table["weights"] == sha256(onnx_run / "model_final.pth")
    assert table["normalisation_of"]["8 bit"]["name"] == "as_is"
    assert table["normalisation_of"]["16 and 32 bit"]["minimum_range"] == 512.0


@pytest.mark.parametrize("info", [{}, [], None, {"format": "x"}, {"format": 1, "rule": {}}])
def test_a_damaged_table(info: Any) -> None:
    with pytest.raises(InputError, match="damaged; export the model again"):
        ModelFacts.from_info(info)
    with pytest.raises(InputError, match="written by a later release"):
        ModelFacts.from_info({"format": 99})


def test_weights_of_half_precision_are_stored_so(onnx_run: Path) -> None:
    """A packaged model's are."""
    stored: dict[int, int] = {}
    for table in onnx.load(str(onnx_run / "model.onnx")).graph.initializer:
        stored[table.data_type] = stored.get(table.data_type, 0) + int(np.prod(table.dims))
    assert stored[onnx.TensorProto.FLOAT16] > 0.99 * sum(stored.values())


@pytest.mark.parametrize(("offset", "halved"), [(0.0, True), (2.0**-20, False)])
def test_no_weight_changes(offset: float, halved: bool) -> None:
    """One that half precision cannot represent keeps its table in float32."""
    weights = (np.arange(2048, dtype=np.float32) + np.float32(offset)).reshape(1, 2048)
    sum_of_both = onnx.helper.make_graph(
        [onnx.helper.make_node("Add", ["x", "w"], ["y"])],
        "sum",
        [onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1, 2048])],
        [onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [1, 2048])],
        [onnx.numpy_helper.from_array(weights, "w")],
    )
    export._halve(onnx, sum_of_both)
    (table,) = sum_of_both.initializer
    assert (table.data_type == onnx.TensorProto.FLOAT16) == halved
    model = onnx.helper.make_model(
        sum_of_both, opset_imports=[onnx.helper.make_opsetid("", export.OPSET)], ir_version=8
    )
    onnx.checker.check_model(model)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {"x": np.zeros((1, 2048), np.float32)})
    np.testing.assert_array_equal(found, weights)


def test_torchscript_equals_onnx(onnx_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """In images of other sizes than were checked, too."""
    assert main(["export", "--model", str(onnx_run), "--format", "torchscript", "--out", str(tmp_path / "a/b")]) == 0
    path = tmp_path / "a/b/model.ts"
    said = capsys.readouterr().out
    assert said.startswith(f"{path}: ")
    assert "equals the model on 5 images of 64x64 to 256x352 pixels with " in said
    assert [each.name for each in path.parent.iterdir()] == ["model.ts"]
    extra = {TABLE: ""}
    script = torch.jit.load(str(path), _extra_files=extra)
    session, table = read(onnx_run / "model.onnx")
    assert json.loads(extra[TABLE]) == table
    rng = np.random.default_rng(0)
    for height, width in ((33, 130), (161, 97)):
        image = rng.integers(0, 255, (3, height, width)).astype(np.float32)
        with torch.no_grad():
            expected = [value.numpy() for value in script(torch.from_numpy(image))]
        assert len(expected[0]) > 0
        for found, value in zip(session.run(None, {"image": image}), expected, strict=True):
            np.testing.assert_allclose(found, value, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("power", ["0.0", "0.5"])
def test_nothing_found(power: str, tiny_run: Path, tmp_path: Path) -> None:
    """A file of a network that takes everything for background gives no rows, rescored or not."""
    # With 32 channels each group of the norm would have one value for a single ROI, which torch refuses.
    opts = ["MODEL.ROI_MASK_QUALITY_HEAD.FC_DIM", "64", "MODEL.ROI_BOX_HEAD.FC_DIM", "64"]
    opts += ["MODEL.PFFNET.SEMANTIC_POWER", power]
    model = build_network(read_config(str(tiny_run / "config.yaml"), opts))
    model.roi_heads.box_predictor.cls_score.bias.data[1] = 1000
    torch.save({"model": model.state_dict()}, tmp_path / "model_final.pth")
    (tmp_path / "config.yaml").write_bytes((tiny_run / "config.yaml").read_bytes())
    assert export.export_onnx(config(tmp_path, *opts), tmp_path).objects == [0] * 5


def test_a_file_that_differs_is_not_kept(onnx_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One score of the file is wrong by a hundredth."""
    outputs = export.DetectionGraph.forward

    def wrong(self: Any, image: torch.Tensor) -> tuple[torch.Tensor, ...]:
        boxes, *others = outputs(self, image)
        return boxes, others[0] + 0.01, *others[1:]

    monkeypatch.setattr(export.DetectionGraph, "forward", wrong)
    with pytest.raises(InputError, match=r"not kept: on an image of .* pixels .* scores or masks by 0\.01\)"):
        export.export_torchscript(config(onnx_run), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_rescoring_by_the_semantic_branch(tiny_run: Path, onnx_run: Path, tmp_path: Path) -> None:
    """It is packaged, written to the file, and finds what torch finds."""
    opts = ["MODEL.PFFNET.SEMANTIC_POWER", "2.0", "MODEL.PFFNET.LABEL_MAP.SCORE_THRESH", "0.2"]
    weights = str(onnx_run.parent / "distinct.pth")
    package_model(str(tiny_run / "config.yaml"), weights, tmp_path, opts=opts)
    export.export_onnx(config(tmp_path), tmp_path)
    predictor = Predictor(model=tmp_path, device="cpu")
    assert predictor.model.model.sem_seg_head is not None
    image, _ = synthetic_image(0, 0, size=(96, 130))
    models = {"torch": predictor, "onnx": Predictor(model=tmp_path / "model.onnx"), "plain": Predictor(model=onnx_run)}
    scores = {}
    for name, each in models.items():
        (found,) = each.backend.detect([image], None, 0.0)
        scores[name] = np.sort(np.asarray(found.instances.class_scores))
    assert len(scores["torch"]) > 3
    np.testing.assert_allclose(scores["onnx"], scores["torch"], rtol=1e-4, atol=1e-4)
    assert scores["plain"].mean() > 1.5 * scores["onnx"].mean()


REFUSED = {
    "views": (["MODEL.PFFNET.TTA", "['identity', 'hflip']"], "MODEL.PFFNET.TTA: a file contains one view"),
    "a resize": (["INPUT.MIN_SIZE_TEST", "64"], "INPUT.MIN_SIZE_TEST 64: the model resizes every image"),
    "a square": (["INPUT.SQUARE.TEST", "64"], "INPUT.SQUARE.TEST 64: the model resizes every image"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_a_file_cannot_hold(case: str, onnx_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    opts, message = REFUSED[case]
    assert main(["export", "--model", str(onnx_run), "--out", str(tmp_path / "out"), "--opts", *opts]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"pffnet: error: {message}")
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_folder_that_cannot_be_written(onnx_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").touch()
    assert main(["export", "--model", str(onnx_run), "--out", str(tmp_path / "file")]) == 2
    assert capsys.readouterr().err.startswith(f"pffnet: error: {tmp_path / 'file'}: ")


def test_without_onnx(onnx_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(InputError, match=r"onnx is not installed; type: pip install 'pffnet_d2\[onnx-export\]'"):
        export.export_onnx(config(onnx_run), tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("form", ["onnx", "torchscript"])
@pytest.mark.parametrize(
    "name",
    [
        "bbbc039/PFFNet_R18_FPN.yaml",
        "bbbc039/MaskRCNN_GN_R18_FPN.yaml",
        "bbbc039/CellRCNN_R18_FPN.yaml",
        "bbbc039/CellRCNN_V2_R18_FPN.yaml",
        "bbbc039/PanopticFPN_R18_FPN.yaml",
        "dsb2018/PFFNet_Lite0_FPN.yaml",
    ],
)
def test_every_method(name: str, form: str, tmp_path: Path) -> None:
    """With random weights, in the widths of their configs. The file is kept only if it equals the network."""
    opts = ["MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", ""]
    torch.manual_seed(0)
    model = build_network(read_config(str(config_path(name)), opts))
    for layer in (model.roi_heads.box_predictor.cls_score, model.proposal_generator.rpn_head.objectness_logits):
        torch.nn.init.normal_(layer.weight, std=0.5)
    torch.save({"model": model.state_dict()}, tmp_path / "model_final.pth")
    cfg = config_of(
        ModelOptions(config=config_path(name), weights=tmp_path / "model_final.pth", device="cpu", opts=opts)
    )
    write = {"onnx": export.export_onnx, "torchscript": export.export_torchscript}[form]
    assert max(write(cfg, tmp_path).objects) > 3


@pytest.mark.slow
def test_a_package_for_bioimageio(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The shipped model; ``bioimageio.core`` tests the package before it is kept, and runs it here."""
    core = pytest.importorskip("bioimageio.core", reason="bioimageio.core is not installed")
    assert main(["export", "--format", "bioimageio", "--out", str(tmp_path)]) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["model.bioimageio.zip"]
    assert "equals the model on 5 images" in capsys.readouterr().out
    image = np.zeros((3, 96, 128), np.float32)
    sample = core.predict(model=tmp_path / "model.bioimageio.zip", inputs=image)
    boxes = sample.members["boxes"].data.values
    assert boxes.shape == (1, 4)  # nothing is in the image, so there is only the empty row
    assert not boxes.any()
