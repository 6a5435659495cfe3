"""Checkpoints in the naming of the field's own code, against a plain forward pass written from its description."""

import math

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from probgram.checkpoint import CheckpointError, load_chain, save_chain
from probgram.inference import sample
from probgram.models import TRM, Perturbed, load_published_trm

L, D, HEADS, HIDDEN, VOCAB, FRONT, K, T = 9, 16, 2, 24, 7, 3, 2, 2
SETTINGS = {"heads": HEADS, "refinements": K, "transitions": T, "front": FRONT}


def published(attention: bool = True, identifiers: int = 1, prefix: str = "") -> dict[str, Tensor]:
    """Random weights under the published names."""
    torch.manual_seed(0)

    def linear(rows: int, columns: int) -> Tensor:
        return torch.randn(rows, columns) / columns**0.5

    tensors = {
        "H_init": torch.randn(D),
        "L_init": torch.randn(D),
        "embed_tokens.embedding_weight": torch.randn(VOCAB, D) / D**0.5,
        "lm_head.weight": linear(VOCAB, D),
        "q_head.weight": linear(2, D),
        "q_head.bias": torch.randn(2),
        "puzzle_emb.weights": torch.randn(identifiers, D) / D**0.5,
    }
    for i in range(2):
        layer = f"L_level.layers.{i}."
        if attention:
            tensors[layer + "self_attn.qkv_proj.weight"] = linear(3 * D, D)
            tensors[layer + "self_attn.o_proj.weight"] = linear(D, D)
        else:
            tensors[layer + "mlp_t.gate_up_proj.weight"] = linear(2 * 20, FRONT + L)
            tensors[layer + "mlp_t.down_proj.weight"] = linear(FRONT + L, 20)
        tensors[layer + "mlp.gate_up_proj.weight"] = linear(2 * HIDDEN, D)
        tensors[layer + "mlp.down_proj.weight"] = linear(D, HIDDEN)
    return {prefix + name: tensor for name, tensor in tensors.items()}


def plain(
    weights: dict[str, Tensor], x: Tensor, identifier: Tensor, steps: int, theta: float | None = 10_000.0
) -> tuple[Tensor, Tensor]:
    """Logits and halt logits after some supervision steps, in float64: a problem, a pair of tokens at a time."""
    embeds = "puzzle_emb.weights" in weights
    before = FRONT if embeds else 0
    weights = {name: value.double() for name, value in weights.items()}

    def norm(v: Tensor) -> Tensor:
        return v / (v.square().mean(-1, keepdim=True) + 1e-5).sqrt()

    def gated(v: Tensor, name: str) -> Tensor:
        both = v @ weights[name + ".gate_up_proj.weight"].T
        half = both.shape[-1] // 2
        gate, up = both[..., :half], both[..., half:]
        return (gate * torch.sigmoid(gate) * up) @ weights[name + ".down_proj.weight"].T

    def turned(v: Tensor, position: int) -> Tensor:
        half = len(v) // 2
        if theta is None:
            return v
        z = torch.complex(v[:half], v[half:])
        z = z * torch.polar(
            torch.ones(half).double(), position * theta ** (-torch.arange(half).double() * 2 / len(v))
        )
        return torch.cat([z.real, z.imag])

    def attended(v: Tensor, name: str) -> Tensor:
        tokens, width = len(v), D // HEADS
        qkv = (v @ weights[name + ".qkv_proj.weight"].T).reshape(tokens, 3 * HEADS, width)
        rows = []
        for i in range(tokens):
            parts = []
            for head in range(HEADS):
                q = turned(qkv[i, head], i)
                score = torch.stack([q @ turned(qkv[j, HEADS + head], j) for j in range(tokens)]) / math.sqrt(width)
                parts.append(score.softmax(0) @ qkv[:, 2 * HEADS + head])
            rows.append(torch.cat(parts))
        return torch.stack(rows) @ weights[name + ".o_proj.weight"].T

    def network(v: Tensor) -> Tensor:
        for i in range(2):
            layer = f"L_level.layers.{i}"
            if layer + ".mlp_t.down_proj.weight" in weights:
                v = norm(v.T + gated(v.T, layer + ".mlp_t")).T
            else:
                v = norm(v + attended(v, layer + ".self_attn"))
            v = norm(v + gated(v, layer + ".mlp"))
        return v

    logits, halts = [], []
    for problem, number in zip(x, identifier, strict=True):
        front = torch.zeros(before, D).double()
        if embeds:
            front[0] = weights["puzzle_emb.weights"][number]
        e = math.sqrt(D) * torch.cat([front, weights["embed_tokens.embedding_weight"][problem]])
        h, l = weights["H_init"].expand(before + L, D), weights["L_init"].expand(before + L, D)
        for _ in range(steps * T):
            for _ in range(K):
                l = network(l + (h + e))
            h = network(h + l)
        logits.append(h[before:] @ weights["lm_head.weight"].T)
        halts.append((weights["q_head.weight"] @ h[0] + weights["q_head.bias"])[0])
    return torch.stack(logits), torch.stack(halts)


def probabilities(chain, run) -> Tensor:
    """Of every token, of the one trajectory, `[B, L, V]`."""
    return chain.readout(run.state).logits[0].softmax(-1)


def stablemax(logits: Tensor) -> Tensor:
    """Of its definition."""
    s = torch.where(logits >= 0, 1 + logits, 1 / (1 - logits.clamp(max=0)))
    return s / s.sum(-1, keepdim=True)


@pytest.mark.parametrize("kind", ["safetensors", "pt"])
@pytest.mark.parametrize("attention", [True, False], ids=["attention", "mixer"])
def test_logits_are_those_of_the_published_network(attention, kind, tmp_path):
    """In float64, so that rounding, which a random recursion amplifies, hides nothing."""
    path = tmp_path / f"step_100.{kind}"
    tensors = published(attention, prefix="model.inner.")
    save_file(tensors, path) if kind == "safetensors" else torch.save(tensors, path)
    chain = load_published_trm(path, L, **SETTINGS)
    assert isinstance(chain, TRM) and not chain.training
    x = torch.randint(VOCAB, (2, L))
    logits, halt = plain(published(attention), x, torch.zeros(2, dtype=torch.long), steps=2)
    run = sample(chain.double(), x, width=1, depth=2, keep="latents")
    torch.testing.assert_close(probabilities(chain, run), stablemax(logits), rtol=0, atol=1e-5)
    torch.testing.assert_close(run.heads["halt"][-1, 0], halt, rtol=0, atol=1e-5)
    assert torch.equal(run.answers[-1, 0].long(), logits.argmax(-1))


@pytest.mark.parametrize("theta", [None, 100.0])
def test_a_network_without_puzzles_without_positions_or_with_softmax_is_read_as_it_was_trained(theta, tmp_path):
    tensors = published()
    del tensors["puzzle_emb.weights"]
    save_file(tensors, tmp_path / "theirs.safetensors")
    own = {"heads": HEADS, "refinements": K, "transitions": T, "rope_theta": theta, "stablemax": False}
    chain = load_published_trm(tmp_path / "theirs.safetensors", L, **own)
    x = torch.randint(VOCAB, (2, L))
    logits, _ = plain(tensors, x, torch.zeros(2, dtype=torch.long), 2, theta)
    run = sample(chain.double(), x, width=1, depth=2, keep="latents")
    torch.testing.assert_close(probabilities(chain, run), logits.softmax(-1), rtol=0, atol=1e-5)
    with pytest.raises(CheckpointError, match="embeds no puzzle, so no token stands before length 9, got 3"):
        load_published_trm(tmp_path / "theirs.safetensors", L, **own, front=3)


@pytest.mark.parametrize("prefix", ["", "inner.", "model.inner.", "_orig_mod.model.inner.", "_orig_mod.inner."])
def test_names_may_have_any_of_the_published_prefixes(prefix, tmp_path):
    chains = []
    for name, tensors in (("with", published(prefix=prefix)), ("without", published())):
        save_file(tensors, tmp_path / f"{name}.safetensors")
        chains.append(load_published_trm(tmp_path / f"{name}.safetensors", L, **SETTINGS).state_dict())
    assert chains[0].keys() == chains[1].keys() and all(torch.equal(chains[0][k], chains[1][k]) for k in chains[0])


def test_several_puzzle_identifiers_are_told_by_the_first_token(tmp_path):
    save_file(published(identifiers=4), tmp_path / "arc.safetensors")
    chain = load_published_trm(tmp_path / "arc.safetensors", L, **SETTINGS)
    x, identifier = torch.randint(VOCAB, (3, L)), torch.tensor([3, 0, 2])
    logits, _ = plain(published(identifiers=4), x, identifier, steps=1)
    run = sample(chain.double(), torch.cat([identifier[:, None], x], 1), width=1, depth=1, keep="latents")
    torch.testing.assert_close(probabilities(chain, run), stablemax(logits), rtol=0, atol=1e-5)


def test_half_precision_weights_become_single(tmp_path):
    torch.save({name: value.bfloat16() for name, value in published().items()}, tmp_path / "half.pt")
    chain = load_published_trm(tmp_path / "half.pt", L, **SETTINGS)
    assert {value.dtype for value in chain.state_dict().values()} == {torch.float32}


def test_a_published_chain_is_saved_as_ours_and_perturbed(tmp_path):
    save_file(published(), tmp_path / "theirs.safetensors")
    chain = load_published_trm(tmp_path / "theirs.safetensors", L, **SETTINGS)
    save_chain(tmp_path / "ours.safetensors", chain)
    again, x = load_chain(tmp_path / "ours.safetensors"), torch.randint(VOCAB, (2, L))
    before, after = (sample(Perturbed(c, 0.3), x, width=5, depth=2) for c in (chain, again))
    assert torch.equal(before.answers, after.answers) and len(before.distinct(1).answers) > 1


def test_problems_that_the_published_network_cannot_read_are_one_clear_sentence(tmp_path):
    save_file(published(), tmp_path / "theirs.safetensors")
    chain = load_published_trm(tmp_path / "theirs.safetensors", L, **SETTINGS)
    with pytest.raises(ValueError, match="x must have no padding: the published network has no mask"):
        sample(chain, [[1] * (L - 1) + [-1]], width=1, depth=1)
    with pytest.raises(ValueError, match=r"x must be \[B, L\] tokens, L = 9"):
        sample(chain, [[1] * (L + 1)], width=1, depth=1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("q_head.bias"), "is no TRM of the field's own code: it has no q_head.bias"),
        (lambda t: t.pop("embed_tokens.embedding_weight"), "it has no embed_tokens.embedding_weight"),
        (
            lambda t: t.update({"embed_pos.embedding_weight": torch.zeros(12, D)}),
            "holds embed_pos.embedding_weight",
        ),
        (
            lambda t: t.update({"H_level.layers.0.mlp.down_proj.weight": torch.zeros(1)}),
            "which this network has not",
        ),
        (
            lambda t: t.update({"q_head.weight": torch.zeros(3, D)}),
            "does not fit length 9, 2 heads and 3 front tokens",
        ),
        (lambda t: t.pop("L_level.layers.1.mlp.down_proj.weight"), "does not fit length 9"),
    ],
)
def test_a_network_that_is_another_is_one_clear_sentence(change, message, tmp_path):
    tensors = published()
    change(tensors)
    save_file(tensors, tmp_path / "theirs.safetensors")
    with pytest.raises(CheckpointError, match=message):
        load_published_trm(tmp_path / "theirs.safetensors", L, **SETTINGS)


class Malicious:
    """Runs code when it is unpickled."""

    def __reduce__(self):
        return (pytest.fail, ("a checkpoint was executed",))


def test_files_that_are_no_tensors_are_refused_and_never_executed(tmp_path):
    torch.save({"model": Malicious()}, tmp_path / "evil.pt")
    torch.save({"model": {"step": 1}}, tmp_path / "nested.pt")
    (tmp_path / "noise.pt").write_bytes(b"not a checkpoint")
    for name in ("evil.pt", "nested.pt", "noise.pt"):
        with pytest.raises(CheckpointError, match="is no state dict of tensors"):
            load_published_trm(tmp_path / name, L)
    for name in ("missing.pt", "missing.safetensors"):
        with pytest.raises(CheckpointError, match="does not exist"):
            load_published_trm(tmp_path / name, L)


def test_puzzle_embeddings_that_do_not_fit_are_refused(tmp_path):
    tensors = published() | {"puzzle_emb.weights": torch.zeros(1, 5 * D)}
    save_file(tensors, tmp_path / "theirs.safetensors")
    with pytest.raises(CheckpointError, match="more than 3 front tokens hold"):
        load_published_trm(tmp_path / "theirs.safetensors", L, **SETTINGS)
