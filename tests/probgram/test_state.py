"""State trees: every structure a chain may carry, and errors that name the leaf."""

from typing import NamedTuple

import pytest
import torch

from probgram import state


class Pair(NamedTuple):
    h: torch.Tensor
    l: object


def tree(*batch: int) -> Pair:
    """A NamedTuple of a tensor and a dict of a tuple and None: all structures at once."""
    torch.manual_seed(sum(batch))
    return Pair(torch.randn(*batch, 4), {"a": (torch.randn(*batch), torch.randn(*batch, 2, 3)), "none": None})


def test_map_state_keeps_the_structure_and_leaves_none_alone():
    mapped = state.map_state(lambda a, b: a + 2 * b, tree(3, 2), tree(3, 2))
    assert isinstance(mapped, Pair) and isinstance(mapped.l, dict) and isinstance(mapped.l["a"], tuple)
    assert torch.equal(mapped.h, 3 * tree(3, 2).h)
    assert torch.equal(mapped.l["a"][1], 3 * tree(3, 2).l["a"][1])
    assert mapped.l["none"] is None


def test_leaves_are_named_as_one_would_write_them():
    with_tensor = tree(2)._replace(l={"a": (torch.zeros(2), torch.zeros(2))})
    assert [name for name, _ in state.leaves(with_tensor)] == ["state.h", "state.l['a'][0]", "state.l['a'][1]"]
    assert [name for name, _ in state.leaves(torch.zeros(2), "context")] == ["context"]


def test_expand_broadcasts_without_copying():
    z = tree(2)
    wide = state.expand(z, (5, 2))
    assert wide.h.shape == (5, 2, 4) and wide.l["a"][0].shape == (5, 2) and wide.l["a"][1].shape == (5, 2, 2, 3)
    assert wide.h.data_ptr() == z.h.data_ptr()
    assert all(torch.equal(row, z.h) for row in wide.h)


def test_expand_keeps_particles_where_there_are_some():
    z = state.expand(tree(3, 2), (3, 2), batch_dims=2)
    assert torch.equal(z.h, tree(3, 2).h)


def test_detach_cuts_every_leaf_from_the_graph():
    z = {"h": torch.ones(2, requires_grad=True) * 2}
    assert z["h"].requires_grad and not state.detach(z)["h"].requires_grad


def test_where_chooses_rows_leaf_by_leaf():
    mask = torch.tensor([[True, False], [False, True], [True, True]])
    ones, zeros = (state.map_state(lambda leaf, v=v: torch.full_like(leaf, v), tree(3, 2)) for v in (1.0, 0.0))
    chosen = state.where(mask, ones, zeros)
    assert torch.equal(chosen.h, mask[..., None].float().expand(3, 2, 4))
    assert torch.equal(chosen.l["a"][0], mask.float())
    assert torch.equal(chosen.l["a"][1], mask[..., None, None].float().expand(3, 2, 2, 3))


def test_gather_ancestors_copies_slots_within_each_problem():
    z = tree(4, 3)
    ancestors = torch.tensor([[0, 3, 1], [0, 3, 1], [2, 0, 1], [3, 0, 2]])
    gathered = state.gather_ancestors(z, ancestors)
    for i in range(4):
        for b in range(3):
            assert torch.equal(gathered.h[i, b], z.h[ancestors[i, b], b])
            assert torch.equal(gathered.l["a"][1][i, b], z.l["a"][1][ancestors[i, b], b])


def test_a_right_state_passes_the_check():
    state.check_state({"h": torch.zeros(3, 2, 4), "count": torch.zeros(3, 2, dtype=torch.long)}, (3, 2))


def test_the_leaf_of_a_wrong_shape_is_named():
    with pytest.raises(
        ValueError, match=r"state\['h'\] must begin with the batch dimensions \[3, 2\], got shape \[2, 3"
    ):
        state.check_state({"l": torch.zeros(3, 2), "h": torch.zeros(2, 3, 4)}, (3, 2))


def test_the_leaf_that_is_nan_is_named():
    with pytest.raises(ValueError, match=r"^state\.l is NaN$"):
        state.check_state(Pair(torch.zeros(3), torch.full((3, 1), torch.nan)), (3,))


@pytest.mark.parametrize("wrong", [[torch.zeros(2)], 3.0, "h"])
def test_what_is_no_state_is_one_clear_sentence(wrong):
    for call in (lambda: state.map_state(torch.neg, wrong), lambda: list(state.leaves(wrong))):
        with pytest.raises(ValueError, match="must be a tensor, a NamedTuple, a tuple or a dict"):
            call()
