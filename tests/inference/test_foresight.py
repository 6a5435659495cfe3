"""Label-free diagnostics, where their values are known."""

import math

import pytest
import torch
from pyro import distributions as dist

from probgram import Chain, Trajectories
from probgram.inference import sample
from probgram.inference.diagnostics import alignment, cloud_entropy, stability
from probgram.models import GRAM, HiddenMarkov, LinearGaussian


class Linear(Chain):
    """h <- A h + eps, which is what the network of this file is."""

    homogeneous = True

    def __init__(self, matrix, transitions=1):
        super().__init__()
        self.register_buffer("matrix", matrix)
        self.transitions = transitions

    def initial(self, context):
        return self.matrix.new_ones(len(context), len(self.matrix))

    def propose(self, state, context, t):
        return state @ self.matrix.T

    def prior(self, proposal, t):
        return dist.Normal(torch.zeros_like(proposal), 0.5).to_event(1)

    def readout(self, state):
        return dist.Delta(state, event_dim=1)


def test_stability_of_a_linear_chain_is_its_spectral_growth():
    matrix = torch.tensor([[0.5, 2.0, 0.0], [0.0, 0.9, 0.3], [0.0, 0.0, -0.3]]).double()  # not normal
    growth = stability(Linear(matrix), torch.zeros(2, 1), width=3, depth=60)
    assert growth.shape == (60, 3, 2)
    torch.testing.assert_close(growth[-1], torch.full((3, 2), math.log(0.9)).double(), atol=1e-6, rtol=0)
    unstable = stability(Linear(2 * matrix), torch.zeros(2, 1), depth=20)
    assert unstable[-1].mean().item() == pytest.approx(math.log(1.8), abs=1e-3)


def test_a_depth_step_of_several_transitions_grows_by_their_product():
    chain = Linear(torch.diag(torch.tensor([0.7, 0.2])).double(), transitions=3)
    assert stability(chain, torch.zeros(1, 1), depth=20)[-1].mean().item() == pytest.approx(
        3 * math.log(0.7), abs=1e-6
    )


def test_rotations_keep_every_perturbation_at_every_step():
    turn = torch.tensor([[0.6, -0.8], [0.8, 0.6]])
    assert stability(Linear(turn), torch.zeros(1, 1), depth=9).abs().max() < 1e-3  # float32, size 1e-3


def test_both_copies_see_the_same_noise_whatever_its_law():
    """A linear chain's growth does not depend on the noise, which would be all there is if copies had their own."""
    chain = LinearGaussian(0.5 * torch.eye(2), torch.eye(2), torch.eye(2), torch.eye(2), torch.ones(2))
    growth = stability(chain, torch.zeros(1, 6, 2), depth=6, size=1e-2)
    assert growth[1:].mean().item() == pytest.approx(math.log(0.5), abs=1e-3)  # the first step starts afresh


def test_a_perturbation_that_vanishes_is_minus_infinity():
    assert stability(Linear(torch.zeros(2, 2)), torch.zeros(1, 1), depth=3).isneginf().all()


def test_the_trajectories_of_stability_are_those_of_sample_and_its_seed_repeats():
    chain = GRAM(GRAM.Config(length=4, input_size=5, output_size=4, dim=16, heads=2, blocks=1, hidden=16))
    x = torch.randint(5, (3, 4), generator=torch.Generator().manual_seed(0))
    before = torch.random.get_rng_state()
    growth = stability(chain, x, width=2, depth=3, seed=5)
    assert growth.shape == (3, 2, 3) and growth.isfinite().all()
    assert torch.equal(growth, stability(chain, x, width=2, depth=3, seed=5))
    assert not torch.equal(growth, stability(chain, x, width=2, depth=3, seed=6))
    assert torch.equal(before, torch.random.get_rng_state())


def test_small_perturbations_of_a_network_grow_by_its_jacobian():
    """One step against the Jacobian's product with the same direction, by autograd."""
    torch.manual_seed(0)
    weight = torch.randn(4, 4, dtype=torch.float64)
    chain = Chain.from_module(lambda h, context: torch.tanh(h @ weight), lambda h: h, (4,), sigma=0.0)
    chain.z0 = chain.z0.double()
    first = stability(chain, torch.zeros(1, 1), width=500, depth=1, size=1e-6)[0, :, 0]
    jacobian = torch.autograd.functional.jacobian(lambda h: torch.tanh(h @ weight), chain.z0)
    largest = torch.linalg.matrix_norm(jacobian, 2).log()
    smallest = torch.linalg.matrix_norm(jacobian, -2).log()
    assert smallest <= first.min() and first.max() <= largest + 1e-5
    # The mean of ‖J v‖² over directions of the sphere is ‖J‖_F² / 4; within four standard errors (6e-5).
    squares = (2 * first).exp()
    expected = float(jacobian.square().sum() / 4)
    assert squares.mean().item() == pytest.approx(expected, abs=4 * float(squares.std()) / 500**0.5)


def test_what_has_no_stability_says_so():
    table = torch.full((2, 2), 0.5)
    with pytest.raises(
        ValueError, match="stability needs a state of real numbers, and that of HiddenMarkov has none"
    ):
        stability(HiddenMarkov(table[0], table, table), torch.zeros(1, 3, dtype=torch.long), depth=2)
    for choices in ({"width": 0}, {"depth": 0}, {"size": 0.0}):
        with pytest.raises(ValueError, match=f"{next(iter(choices))} must be"):
            stability(Linear(torch.eye(2)), torch.zeros(1, 1), **choices)


# -- alignment ------------------------------------------------------------------------------------------------


def make_run(last, head, weights=None, ancestors=None) -> Trajectories:
    """One problem, two steps; the head's logits `[S, N]`."""
    answers = torch.as_tensor(last, dtype=torch.uint8)[None, :, None, None].expand(2, -1, 1, 2)
    log_weights = torch.zeros(answers.shape[:3])
    if weights is not None:
        log_weights[-1] = torch.as_tensor(weights).float().log()[:, None]
    return Trajectories(
        x=torch.zeros(1, 1),
        answers=answers,
        log_weights=log_weights,
        heads={"value": torch.as_tensor(head).float()[..., None]},
        ancestors=None if ancestors is None else torch.as_tensor(ancestors).int()[..., None],
    )


def test_a_head_that_knows_where_the_cloud_goes_is_aligned_and_one_that_errs_is_not():
    logits = [[2.0, 2.0, 2.0, -1.0], [-1.0, -1.0, -1.0, 2.0]]
    assert alignment(make_run([7, 7, 7, 3], logits))[:, 0].tolist() == pytest.approx([1.0, -1.0])


def test_alignment_is_a_weighted_correlation():
    weights = torch.tensor([1.0, 2.0, 3.0, 4.0])
    logits = torch.tensor([0.3, -0.2, 1.0, 0.5])
    found = alignment(make_run([1, 2, 2, 3], torch.stack([logits, logits]), weights))[0, 0]
    share = torch.tensor([0.1, 0.5, 0.5, 0.4]).double()  # of the weight, with the same answer
    w, says = (weights / 10).double(), logits.double().sigmoid()
    says, share = says - (w * says).sum(), share - (w * share).sum()
    expected = (w * says * share).sum() / ((w * says**2).sum() * (w * share**2).sum()).sqrt()
    assert found.item() == pytest.approx(expected.item(), rel=1e-6)


def test_alignment_follows_the_ancestry():
    """What the head said of slot 1 counts for slots 0 to 2, its descendants; slot 3 descends from slot 0."""
    ancestors = [[0, 1, 2, 3], [1, 1, 1, 0]]
    logits = [[-1.0, 2.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]]
    found = alignment(make_run([7, 7, 7, 3], logits, ancestors=ancestors))[:, 0]
    assert found[0].item() == pytest.approx(1.0) and found[1].isnan()


def test_without_a_difference_there_is_nothing_to_align():
    assert alignment(make_run([7, 7, 7], [[1.0, 2.0, 3.0]] * 2)).isnan().all()
    assert alignment(make_run([7, 7, 3], [[0.1, 0.1, 0.1]] * 2)).isnan().all()
    with pytest.raises(ValueError, match=r"the run has no head 'halt': it has \['value'\]"):
        alignment(make_run([7], [[1.0]] * 2), "halt")


# -- entropy of the cloud -------------------------------------------------------------------------------------


def test_cloud_entropy_is_per_position_and_by_weight():
    answers = torch.tensor([[1, 5, 9], [1, 6, 9], [1, 6, 8], [1, 5, 7]], dtype=torch.uint8)[None, :, None]
    run = Trajectories(x=torch.zeros(1, 1), answers=answers, log_weights=torch.zeros(1, 4, 1))
    assert cloud_entropy(run)[0, 0].tolist() == pytest.approx([0.0, math.log(2), 1.5 * math.log(2)])
    one = Trajectories(
        x=torch.zeros(1, 1),
        answers=answers,
        log_weights=torch.tensor([0.0, -torch.inf, -torch.inf, -torch.inf])[None, :, None],
    )
    assert cloud_entropy(one).abs().max() == 0


def test_diagnostics_take_a_run_of_a_chain_as_it_is():
    chain = GRAM.from_pretrained("queens8")
    run = sample(chain, torch.tensor([[8, 8, 8, 8, 3, 8, 8, 8], [0, 8, 8, 8, 8, 8, 8, 8]]), 8, 3)
    assert cloud_entropy(run).shape == (3, 2, 8) and alignment(run, "halt").shape == (3, 2)
