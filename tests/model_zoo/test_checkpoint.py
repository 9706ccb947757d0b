"""Checkpoints: only weights are read, weights that do not fit are named, files are written whole."""

from __future__ import annotations

import os
import pickle
from collections import OrderedDict
from pathlib import Path
from typing import IO, Any

import numpy as np
import pytest
import torch
from detectron2.modeling import build_model
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from torch import nn

from pffnet_d2.config import config_path, read_config
from pffnet_d2.engine.optimizer import WeightAverage
from pffnet_d2.errors import InputError
from pffnet_d2.model_zoo.checkpoint import Checkpointer, NumpyUnpickler, read_weights


class Backbone(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.bottom_up = nn.Linear(3, width)
        self.lateral = nn.Linear(width, 2)


class Model(nn.Module):
    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.backbone = Backbone(width)
        self.head = nn.Linear(2, 1)
        self.register_buffer("pixel_mean", torch.zeros(3, 1, 1))


class Shell:
    """The content of a malicious pickle."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (self.command,)


def arrays(model: nn.Module) -> dict[str, np.ndarray]:
    return {name: value.numpy() for name, value in model.state_dict().items()}


def dump(path: Path, what: Any, protocol: int = 2) -> str:
    path.write_bytes(pickle.dumps(what, protocol=protocol))
    return str(path)


def assert_equal_weights(a: nn.Module, b: nn.Module) -> None:
    for (name, x), y in zip(a.state_dict().items(), b.state_dict().values(), strict=True):
        assert torch.equal(x, y), name


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_model_zoo_pickle(tmp_path: Path, protocol: int) -> None:
    theirs, ours = Model(), Model()
    file = dump(tmp_path / "zoo.pkl", {"model": arrays(theirs), "__author__": "someone"}, protocol)
    Checkpointer(ours).load(file)
    assert_equal_weights(theirs, ours)


@pytest.mark.parametrize("module", ["numpy.core", "numpy._core"])
def test_pickles_of_other_numpy_releases(tmp_path: Path, module: str) -> None:
    # Protocol 0 names classes in plain text; numpy 1 called the package numpy.core, numpy 2 numpy._core.
    text = pickle.dumps({"model": {"w": np.arange(3.0)}, "__author__": ""}, protocol=0)
    text = text.replace(b"numpy._core.", b"numpy.core.").replace(b"numpy.core.", module.encode() + b".")
    (tmp_path / "zoo.pkl").write_bytes(text)
    assert np.array_equal(read_weights(str(tmp_path / "zoo.pkl"))["model"]["w"], np.arange(3.0))


def caffe2_name(name: str) -> str:
    """Convert Detectron2's name of a ResNet weight to Caffe2's, for basic blocks with GroupNorm."""
    suffix = {"norm.weight": "gn_s", "norm.bias": "gn_b", "weight": "w"}
    module, _, last = name.partition(".norm.") if ".norm." in name else name.rpartition(".")
    last = suffix["norm." + last if ".norm." in name else last]
    if module.startswith("stem."):
        return f"conv1_{last}"
    stage, block, conv = module.split(".")
    branch = {"conv1": "branch2a", "conv2": "branch2b", "shortcut": "branch1"}[conv]
    return f"{stage}_{block}_{branch}_{last}"


@pytest.mark.parametrize("blobs", [False, True])
def test_caffe2_imagenet_file_starts_pffnet(tmp_path: Path, blobs: bool) -> None:
    """The form of ImageNetPretrained/FAIR/R-101-GN: Caffe2 names of the ResNet, momenta, a classifier, no FPN."""
    cfg = read_config(str(config_path("demo/PFFNet_R18_FPN.yaml")), ["MODEL.DEVICE", "cpu"])
    theirs, ours = build_model(cfg), build_model(cfg)
    weights = {caffe2_name(k): v for k, v in arrays(theirs.backbone.bottom_up).items()}
    weights |= {"fc1000_w": np.zeros((2, 512), np.float32), "fc1000_b": np.zeros(2, np.float32)}
    weights |= {f"{name}_momentum": value for name, value in weights.items()}
    file = dump(tmp_path / "R-18-GN.pkl", {"blobs": weights} if blobs else weights)

    Checkpointer(ours).load(file, checkpointables=[])
    assert_equal_weights(theirs.backbone.bottom_up, ours.backbone.bottom_up)
    # Training does not start from a file of another depth or width.
    del weights["res5_1_branch2b_w"]
    weights["res4_0_branch2a_w"] = weights["res4_0_branch2a_w"][:, :2]
    with pytest.raises(InputError, match=r"res4\.0\.conv1\.weight missing, .*res5\.1\.conv2\.weight missing"):
        Checkpointer(ours).load(dump(tmp_path / "other.pkl", weights), checkpointables=[])


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_pickle_that_runs_a_command_is_refused(tmp_path: Path, protocol: int) -> None:
    trace = tmp_path / "ran"
    content = {"model": {"w": np.zeros(2)}, "__author__": Shell(f"touch {trace}")}
    file = dump(tmp_path / "evil.pkl", content, protocol)
    with pytest.raises(InputError, match=r"evil\.pkl: not read: it holds (posix|nt)\.system"):
        read_weights(file)
    assert not trace.exists()
    pickle.loads(Path(file).read_bytes())
    assert trace.exists()  # an ordinary unpickler runs it


def test_pth_that_runs_a_command_is_refused(tmp_path: Path) -> None:
    trace = tmp_path / "ran"
    file = tmp_path / "evil.pth"
    torch.save({"model": {"w": torch.zeros(2)}, "extra": Shell(f"touch {trace}")}, file)
    with pytest.raises(InputError, match=r"evil\.pth: not read: it holds (posix|nt)\.system"):
        read_weights(str(file))
    assert not trace.exists()


@pytest.mark.parametrize("path", ["builtins.eval", "numpy.testing.measure", "numpy.load", "os.path.join"])
def test_unpickler_admits_no_other_function(tmp_path: Path, path: str) -> None:
    module, _, name = path.rpartition(".")
    (tmp_path / "evil.pkl").write_bytes(f"c{module}\n{name}\n.".encode())
    with pytest.raises(InputError, match=f"it holds {path}"):
        read_weights(str(tmp_path / "evil.pkl"))


@settings(max_examples=30, deadline=None)
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text() | st.floats(allow_nan=False),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
        max_leaves=8,
    ),
    hnp.arrays(st.sampled_from([np.float32, np.int64, np.uint8, np.bool_]), hnp.array_shapes(min_side=0)),
    st.integers(0, pickle.HIGHEST_PROTOCOL),
)
def test_unpickler_reads_plain_values_and_arrays(tmp_path_factory: Any, plain: Any, array: Any, protocol: int) -> None:
    file = tmp_path_factory.mktemp("pickles") / "x.pkl"
    scalar = np.float32(0.5)
    dump(file, [plain, array, scalar, OrderedDict(a=1)], protocol)
    with file.open("rb") as stream:
        back = NumpyUnpickler(stream).load()
    assert back[0] == plain
    assert back[1].dtype == array.dtype
    assert np.array_equal(back[1], array, equal_nan=array.dtype.kind == "f")
    assert back[2:] == [scalar, {"a": 1}]


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(cut=st.floats(0, 0.999), ending=st.sampled_from([".pkl", ".pth"]))
def test_truncated_files_are_named(tmp_path: Path, cut: float, ending: str) -> None:
    file = tmp_path / f"whole{ending}"
    if ending == ".pkl":
        dump(file, {"model": arrays(Model()), "__author__": ""})
    else:
        torch.save({"model": Model().state_dict()}, file)
    data = file.read_bytes()
    file.write_bytes(data[: int(cut * len(data))])
    with pytest.raises(InputError, match=rf"whole\{ending}: .*(truncated|not read|not a checkpoint)") as error:
        read_weights(str(file))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("content", [[1, 2], {}, {"model": {"w": "text"}}, {"model": {}}, {"model": 3}])
def test_files_of_something_else(tmp_path: Path, content: Any) -> None:
    torch.save(content, tmp_path / "x.pth")
    with pytest.raises(InputError, match=r"x\.pth: not a checkpoint"):
        read_weights(str(tmp_path / "x.pth"))


def test_weights_that_cannot_be_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FVCORE_CACHE", str(tmp_path / "cache"))
    remedy = "MODEL.WEIGHTS '' MODEL.BACKBONE.FREEZE_AT 0 or a local file"
    for path in (
        str(tmp_path / "none.pth"),
        "catalog://ImageNetPretrained/FAIR/R-18-GN",
        "http://127.0.0.1:9/R-101-GN.pkl",
    ):
        with pytest.raises(InputError) as error:
            Checkpointer(Model()).load(path, checkpointables=[])
        message = str(error.value)
        assert message.startswith(path)
        assert remedy in message
        assert "\n" not in message


def test_misfits_are_named(tmp_path: Path) -> None:
    Checkpointer(Model(width=5), str(tmp_path)).save("other")
    for checkpointables in (None, []):
        with pytest.raises(InputError, match=r"backbone\.bottom_up\.weight \(5, 3\) in the file, \(4, 3\) here"):
            Checkpointer(Model()).load(str(tmp_path / "other.pth"), checkpointables=checkpointables)


def test_heads_may_be_new_only_when_training_starts(tmp_path: Path) -> None:
    theirs, ours = Model(), Model()
    weights = {k: v for k, v in theirs.state_dict().items() if k.startswith("backbone.bottom_up.")}
    torch.save(weights, tmp_path / "start.pth")
    Checkpointer(ours).load(str(tmp_path / "start.pth"), checkpointables=[])
    assert_equal_weights(theirs.backbone.bottom_up, ours.backbone.bottom_up)
    with pytest.raises(InputError, match=r"backbone\.lateral\.bias missing, .*head\.bias missing and 1 more"):
        Checkpointer(ours).load(str(tmp_path / "start.pth"))
    torch.save({"head.weight": theirs.head.weight.detach()}, tmp_path / "heads.pth")
    with pytest.raises(InputError, match=r"backbone\.bottom_up\.bias missing"):
        Checkpointer(ours).load(str(tmp_path / "heads.pth"), checkpointables=[])


def test_heads_of_other_classes_are_new_only_when_training_starts(tmp_path: Path) -> None:
    theirs, ours = Model(), Model()
    theirs.head = nn.Linear(2, 81)
    before = ours.head.weight.clone()
    torch.save(theirs.state_dict(), tmp_path / "coco.pth")
    Checkpointer(ours).load(str(tmp_path / "coco.pth"), checkpointables=[])
    assert_equal_weights(theirs.backbone, ours.backbone)
    assert torch.equal(ours.head.weight, before)
    with pytest.raises(InputError, match=r"head\.weight \(81, 2\) in the file, \(1, 2\) here"):
        Checkpointer(ours).load(str(tmp_path / "coco.pth"))


def test_new_heads_keep_no_share_of_the_start(tmp_path: Path) -> None:
    theirs, ours = Model(), Model()
    theirs.head = nn.Linear(2, 81)
    torch.save(theirs.state_dict(), tmp_path / "coco.pth")
    average = WeightAverage(ours, 0.9, 0.5)
    Checkpointer(ours, average=average).load(str(tmp_path / "coco.pth"), checkpointables=[])
    assert average.start.keys() == {n for n, _ in ours.named_parameters() if not n.startswith("head.")}


def test_saved_checkpoints_are_weights_only_and_can_be_read(tmp_path: Path) -> None:
    theirs, ours = Model(), Model()
    Checkpointer(theirs, str(tmp_path)).save("model_0000001", iteration=1, best=np.float64(0.5), count=np.int64(3))
    checkpointer = Checkpointer(ours, str(tmp_path))
    left = checkpointer.resume_or_load("", resume=True)
    assert_equal_weights(theirs, ours)
    assert left["iteration"] == 1
    assert (left["best"], left["count"]) == (0.5, 3)


def test_a_failing_write_leaves_the_checkpoint_before_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = Model()
    checkpointer = Checkpointer(model, str(tmp_path))
    checkpointer.save("model_final", iteration=1)
    before = (tmp_path / "model_final.pth").read_bytes()

    def full_disk(data: Any, file: IO[bytes]) -> None:
        file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full_disk)
    with pytest.raises(InputError, match=r"model_final\.pth: cannot be written \(No space left"):
        checkpointer.save("model_final", iteration=2)
    assert (tmp_path / "model_final.pth").read_bytes() == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["last_checkpoint", "model_final.pth"]


def damage(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 255
    file.write_bytes(data)


def truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-100])


@pytest.mark.parametrize("spoil", [damage, truncate, Path.unlink], ids=["damaged", "truncated", "missing"])
@pytest.mark.parametrize("last", ["model_0000009", "model_final"])
def test_resuming_falls_back_to_the_newest_complete_checkpoint(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, last: str, spoil: Any
) -> None:
    whole = Model()
    for name, model in (("model_0000001", Model()), ("model_0000005", whole), ("model_0000007", Model())):
        Checkpointer(model, str(tmp_path)).save(name, iteration=int(name[-1]))
    truncate(tmp_path / "model_0000007.pth")
    Checkpointer(Model(), str(tmp_path)).save("model_0000019")  # of an earlier, longer run
    Checkpointer(Model(), str(tmp_path)).save(last)
    if last == "model_final":
        (tmp_path / "model_0000019.pth").unlink()
    spoil(tmp_path / f"{last}.pth")
    ours = Model()
    assert Checkpointer(ours, str(tmp_path)).resume_or_load("", resume=True)["iteration"] == 5
    assert_equal_weights(whole, ours)
    (line,) = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert line.startswith(f"{tmp_path / last}.pth: ")
    assert f"resuming from {tmp_path / 'model_0000005.pth'}" in line


def test_a_run_made_longer_falls_back_to_its_first_end(tmp_path: Path) -> None:
    ours, whole = Model(), Model()
    Checkpointer(whole, str(tmp_path)).save("model_final", iteration=9)
    Checkpointer(Model(), str(tmp_path)).save("model_0000014")
    damage(tmp_path / "model_0000014.pth")
    Checkpointer(ours, str(tmp_path)).load_last()
    assert_equal_weights(whole, ours)


def test_resuming_without_any_complete_checkpoint(tmp_path: Path) -> None:
    checkpointer = Checkpointer(Model(), str(tmp_path))
    for name in ("model_0000001", "model_final"):
        checkpointer.save(name)
        truncate(tmp_path / f"{name}.pth")
    with pytest.raises(InputError, match=r"model_final\.pth: truncated.*omit --resume to start again") as error:
        checkpointer.resume_or_load("", resume=True)
    assert "\n" not in str(error.value)


def test_a_last_checkpoint_of_another_model_is_not_damaged(tmp_path: Path) -> None:
    Checkpointer(Model(), str(tmp_path)).save("model_0000001")
    Checkpointer(Model(width=5), str(tmp_path)).save("model_0000002")
    with pytest.raises(InputError, match=r"model_0000002\.pth: does not fit the model"):
        Checkpointer(Model(), str(tmp_path)).resume_or_load("", resume=True)


def test_a_changed_byte_is_noticed(tmp_path: Path) -> None:
    torch.save({"model": {"w": torch.zeros(1000)}}, tmp_path / "w.pth")
    damage(tmp_path / "w.pth")
    with pytest.raises(InputError, match=r"w\.pth: truncated, damaged or not a weights file"):
        read_weights(str(tmp_path / "w.pth"))


def test_unreadable_is_not_damaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **options: Any) -> None:
        raise PermissionError(13, "Permission denied", "w.pth")

    monkeypatch.setattr(torch, "load", refuse)
    with pytest.raises(InputError, match=r"w\.pth: cannot be read \(Permission denied\)") as error:
        read_weights("w.pth")
    assert "truncated" not in str(error.value)


def test_the_remedy_is_that_of_the_command(tmp_path: Path) -> None:
    (tmp_path / "folder.pth").mkdir()
    for name in ("none.pth", "folder.pth"):
        with pytest.raises(InputError, match="or a local file"):
            Checkpointer(Model()).load(str(tmp_path / name), checkpointables=[])
        with pytest.raises(InputError, match="give the file that training wrote") as error:
            Checkpointer(Model()).load(str(tmp_path / name))
        assert "MODEL.WEIGHTS ''" not in str(error.value)


@pytest.mark.parametrize("start", [True, False])
def test_fetching_is_logged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, start: bool
) -> None:
    file = tmp_path / "whole.pth"
    torch.save(Model().state_dict(), file)
    checkpointer = Checkpointer(Model())
    monkeypatch.setattr(checkpointer.path_manager, "get_local_path", lambda path: str(file))
    checkpointer.load("https://example.org/whole.pth", checkpointables=[] if start else None)
    (line,) = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert "fetching https://example.org/whole.pth" in line


def test_a_classifier_is_not_fetched_as_a_trained_model(monkeypatch: pytest.MonkeyPatch) -> None:
    checkpointer = Checkpointer(Model())
    monkeypatch.setattr(checkpointer.path_manager, "get_local_path", lambda path: pytest.fail("fetched"))
    for path in ("catalog://ImageNetPretrained/FAIR/R-101-GN", "detectron2://ImageNetPretrained/torchvision/R-50.pkl"):
        with pytest.raises(InputError, match="an ImageNet classifier"):
            checkpointer.load(path)
