"""Weight files: they come back exactly, and whatever is wrong with one is a sentence, not a traceback."""

import errno
import os
import pickle
import stat
from pathlib import Path
from types import ModuleType

import pytest
import torch
from safetensors.torch import save_file

from probgram import checkpoint, tasks
from probgram.checkpoint import CheckpointError
from probgram.inference import sample
from probgram.models import GRAM, GRAMGuide

TASK = tasks.Queens(5)
SIZES = {"dim": 16, "heads": 2, "blocks": 1, "hidden": 24}


def make_chain(**choices) -> GRAM:
    torch.manual_seed(0)
    chain = GRAM.for_task(TASK, **(SIZES | choices))
    for parameter in chain.parameters():  # zero-initialised layers would hide what is not loaded
        torch.nn.init.normal_(parameter, std=0.3)
    return chain


@pytest.fixture
def weights(tmp_path):
    chain = make_chain()
    guide = GRAMGuide(chain)
    torch.nn.init.normal_(guide.mu.weight)
    path = checkpoint.save_chain(tmp_path / "tiny.safetensors", chain, guide, {"task": TASK.name, "seeds": [0, 1]})
    return path, chain, guide


def same(a: torch.nn.Module, b: torch.nn.Module) -> bool:
    left, right = a.state_dict(), b.state_dict()
    return left.keys() == right.keys() and all(torch.equal(left[k], right[k]) for k in left)


def sentence(call) -> str:
    """The message of the CheckpointError that `call` raises; one line."""
    with pytest.raises(CheckpointError) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message and 10 < len(message) < 500
    return message


# -- there and back -------------------------------------------------------------------------------------------


def test_a_chain_and_its_guide_come_back_exactly(weights):
    path, chain, guide = weights
    again = GRAM.from_pretrained(path)
    assert same(chain, again) and again.config == chain.config
    assert not again.training
    assert again.about == {"task": "queens5", "seeds": [0, 1]}
    assert same(guide, checkpoint.load_guide(path, GRAMGuide(again)))
    x = TASK.encode([0, None, None, None, None])
    assert torch.equal(sample(chain, x, 8, 3).answers, sample(again, x, 8, 3).answers)


@pytest.mark.parametrize("choices", [{"body": "mixer"}, {"mean": False}, {"noise": False}, {"tasks": 2}], ids=str)
def test_every_kind_of_chain_comes_back(choices, tmp_path):
    chain = make_chain(**choices)
    path = checkpoint.save_chain(tmp_path / "a.safetensors", chain)
    assert same(chain, GRAM.from_pretrained(path))


def test_weights_are_found_by_file_by_text_and_by_folder(weights):
    path, chain, _ = weights
    for name in (path, str(path), path.parent, str(path.parent)):
        assert same(chain, GRAM.from_pretrained(name))


def test_metadata_are_read_without_the_tensors(weights):
    metadata = checkpoint.read_metadata(weights[0])
    assert metadata["format"] == "probgram.weights/1" and metadata["model"] == "GRAM"


def test_shared_and_strided_tensors_are_written(tmp_path):
    whole = torch.arange(12.0).reshape(3, 4)
    path = checkpoint.write_tensors(tmp_path / "a", {"a": whole, "b": whole.T, "c": whole[:, ::2]}, {"k": "v"})
    tensors, metadata = checkpoint.read_tensors(path)
    assert metadata == {"k": "v"}
    assert all(torch.equal(tensors[k], v) for k, v in {"a": whole, "b": whole.T, "c": whole[:, ::2]}.items())


def test_a_written_file_is_readable_by_others_and_its_folder_is_made(tmp_path):
    path = checkpoint.write_bytes(tmp_path / "new" / "folder" / "file", b"content")
    assert path.read_bytes() == b"content"
    assert stat.S_IMODE(path.stat().st_mode) == 0o644


def test_a_fingerprint_tells_weights_apart():
    first, again, other = make_chain(), make_chain(), make_chain()
    with torch.no_grad():
        other.decode.bias[0] += 1e-3
    first, again, other = (checkpoint.fingerprint(chain.state_dict()) for chain in (first, again, other))
    assert first == again != other
    assert len(first) == 16


def test_the_fingerprint_of_a_module_is_computed_anew_after_a_change_only(monkeypatch):
    chain, calls, fingerprint = make_chain(), [], checkpoint.fingerprint
    monkeypatch.setattr(checkpoint, "fingerprint", lambda tensors: calls.append(1) or fingerprint(tensors))
    first = checkpoint.weights_of(chain)
    assert first == checkpoint.weights_of(chain) == fingerprint(chain.state_dict()) and len(calls) == 1
    with torch.no_grad():
        next(chain.parameters()).add_(1)
    assert checkpoint.weights_of(chain) != first and len(calls) == 2
    assert checkpoint.weights_of(chain.bfloat16()) != first and len(calls) == 3
    assert checkpoint.weights_of(torch.nn.ReLU()) is None


# -- what can be wrong with a file ----------------------------------------------------------------------------


@pytest.mark.parametrize("kept", [0, 4, 200, -1])
def test_a_truncated_file_is_one_sentence(weights, kept):
    path = weights[0]
    path.write_bytes(path.read_bytes()[:kept])
    assert "is not a whole safetensors file" in sentence(lambda: GRAM.from_pretrained(path))


def test_a_pickled_file_is_refused_and_never_run(tmp_path):
    class Trap:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "sprung"),)

    path = tmp_path / "weights.safetensors"
    path.write_bytes(pickle.dumps(Trap()))
    assert "is not a whole safetensors file" in sentence(lambda: GRAM.from_pretrained(path))
    torch.save(make_chain().state_dict(), path)
    assert "is not a whole safetensors file" in sentence(lambda: GRAM.from_pretrained(path))
    assert not (tmp_path / "sprung").exists()


def test_safetensors_of_another_program_are_one_sentence(tmp_path):
    path = tmp_path / "foreign.safetensors"
    save_file({"weight": torch.zeros(2)}, path)
    assert "holds no probgram weights" in sentence(lambda: GRAM.from_pretrained(path))


def test_a_name_that_is_nothing_is_one_sentence(tmp_path):
    message = sentence(lambda: GRAM.from_pretrained("queens8000"))
    assert "no weights are called 'queens8000': expected a file, a folder or one of [" in message
    assert "no weights are called" in sentence(lambda: GRAM.from_pretrained(tmp_path / "gone.safetensors"))
    assert "does not exist" in sentence(lambda: checkpoint.read_tensors(tmp_path / "gone.safetensors"))
    assert "does not exist" in sentence(lambda: checkpoint.read_metadata(tmp_path / "gone.safetensors"))


def test_a_folder_without_one_weight_file_is_one_sentence(weights, tmp_path):
    (tmp_path / "empty").mkdir()
    assert "exactly one .safetensors file, found 0" in sentence(lambda: GRAM.from_pretrained(tmp_path / "empty"))
    (tmp_path / "second.safetensors").write_bytes(weights[0].read_bytes())
    assert "exactly one .safetensors file, found 2" in sentence(lambda: GRAM.from_pretrained(tmp_path))


def rewrite(path, tensors=None, **metadata):
    """Write the file again with some of it changed."""
    old_tensors, old_metadata = checkpoint.read_tensors(path)
    checkpoint.write_tensors(path, old_tensors if tensors is None else tensors, old_metadata | metadata)


def test_weights_of_another_model_are_one_sentence(weights):
    path = weights[0]
    rewrite(path, model="TRM")
    assert "holds a TRM, not a GRAM" in sentence(lambda: GRAM.from_pretrained(path))
    rewrite(path, model="Nonsense")
    said = sentence(lambda: checkpoint.load_chain(path))
    assert "holds a Nonsense, which is no model of probgram's: load it by its own class" in said
    rewrite(path, model="EqR")
    said = sentence(lambda: checkpoint.read_weights(path, None, ModuleType("on_jax"), "np"))
    assert "holds a EqR, which has no twin in JAX: load it with the torch backend" in said


def test_missing_and_misshapen_tensors_are_one_sentence(weights):
    path = weights[0]
    tensors, _ = checkpoint.read_tensors(path)
    rewrite(path, {k: v for k, v in tensors.items() if k != "chain.decode.weight"})
    message = sentence(lambda: GRAM.from_pretrained(path))
    assert "does not fit the GRAM of this version" in message and "decode.weight" in message
    rewrite(path, tensors | {"chain.decode.weight": torch.zeros(2, 2)})
    assert "decode.weight" in sentence(lambda: GRAM.from_pretrained(path))


@pytest.mark.parametrize("configuration", ['{"length": 5}', '{"size": 5}', "not json", '{"body": "x"}'])
def test_a_configuration_of_another_version_is_one_sentence(weights, configuration):
    path = weights[0]
    if configuration == '{"body": "x"}':
        configuration = checkpoint.read_metadata(path)["configuration"].replace("attention", "x")
    rewrite(path, configuration=configuration)
    assert "does not fit the GRAM of this version" in sentence(lambda: GRAM.from_pretrained(path))


def test_a_file_without_a_guide_is_one_sentence(tmp_path):
    chain = make_chain()
    path = checkpoint.save_chain(tmp_path / "bare.safetensors", chain)
    assert "has no guide of this kind" in sentence(lambda: checkpoint.load_guide(path, GRAMGuide(chain)))


# -- what can go wrong while writing --------------------------------------------------------------------------


@pytest.mark.parametrize("step", ["fsync", "replace", "chmod"])
def test_a_full_disk_is_one_sentence_and_leaves_the_old_file_alone(weights, monkeypatch, step):
    path, chain, _ = weights
    old = path.read_bytes()

    def full(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, step, full)
        message = sentence(lambda: checkpoint.save_chain(path, make_chain(mean=False)))
    assert message == f"{path} could not be written: No space left on device"
    assert path.read_bytes() == old and same(chain, GRAM.from_pretrained(path))
    assert os.listdir(path.parent) == [path.name]  # no temporary file is left


def test_a_disk_that_fills_up_in_the_middle_of_the_content_is_the_same(weights, monkeypatch):
    path, chain, _ = weights
    write = Path.write_bytes

    def full(self, content):
        write(self, content[: len(content) // 2])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", full)
        message = sentence(lambda: checkpoint.save_chain(path, make_chain(mean=False)))
    assert "No space left on device" in message
    assert same(chain, GRAM.from_pretrained(path)) and os.listdir(path.parent) == [path.name]


def test_a_folder_that_cannot_be_made_is_one_sentence(tmp_path):
    (tmp_path / "file").write_text("in the way")
    assert "could not be written" in sentence(lambda: checkpoint.write_bytes(tmp_path / "file" / "a", b""))
    (tmp_path / "folder").mkdir()
    assert "could not be written" in sentence(lambda: checkpoint.write_bytes(tmp_path / "folder", b""))
    assert sorted(os.listdir(tmp_path)) == ["file", "folder"]
