"""The token distribution and the network pieces, against torch's own."""

import pytest
import torch
from torch import nn
from torch.distributions import Categorical

from probgram.models.blocks import Attention, Body, PooledHead, Tokens, rms_norm


def test_tokens_are_independent_categoricals():
    logits, value = torch.randn(4, 3, 5, 7), torch.randint(7, (4, 3, 5))
    tokens = Tokens(logits)
    assert tokens.batch_shape == (4, 3) and tokens.event_shape == (5,)
    assert torch.allclose(tokens.log_prob(value), Categorical(logits=logits).log_prob(value).sum(-1), atol=1e-5)
    assert torch.equal(tokens.mode, logits.argmax(-1))


def test_padded_tokens_have_no_density():
    logits, value = torch.randn(2, 5, 7), torch.randint(7, (2, 5))
    padded = value.clone()
    padded[:, 3:] = -1
    expected = Categorical(logits=logits[:, :3]).log_prob(value[:, :3]).sum(-1)
    assert torch.allclose(Tokens(logits).log_prob(padded), expected, atol=1e-5)
    assert Tokens(logits).log_prob(torch.full((2, 5), -1)).tolist() == [0.0, 0.0]


def test_one_answer_is_scored_for_all_particles_and_all_answers_for_one():
    logits = torch.randn(4, 3, 5, 7)
    value = torch.randint(7, (3, 5))
    expected = torch.stack([Tokens(row).log_prob(value) for row in logits])
    assert torch.allclose(Tokens(logits).log_prob(value), expected)
    assert Tokens(logits).expand((2, 4, 3)).log_prob(value).shape == (2, 4, 3)
    assert Tokens(logits[0, 0]).log_prob(value).shape == (3,)


def test_draws_follow_the_probabilities():
    torch.manual_seed(0)
    probabilities = torch.tensor([[0.7, 0.2, 0.1], [0.1, 0.1, 0.8]])
    draws = Tokens(probabilities.log()).sample((20_000,))
    found = nn.functional.one_hot(draws, 3).float().mean(0)
    assert draws.shape == (20_000, 2)
    assert ((found - probabilities).abs() < 4 * (probabilities * (1 - probabilities) / 20_000).sqrt()).all()


def test_values_outside_the_vocabulary_are_refused():
    with pytest.raises(ValueError):
        Tokens(torch.zeros(2, 3), validate_args=True).log_prob(torch.tensor([0, 3]))


def test_attention_is_torchs_attention_on_rotated_queries_and_keys():
    torch.manual_seed(0)
    layer = Attention(16, 2, 9)
    x = torch.randn(3, 6, 16)
    mask = torch.rand(3, 6) < 0.7
    mask[:, 0] = True
    q, k, v = layer.qkv(x).view(3, 6, 3, 2, 8).permute(2, 0, 3, 1, 4)

    def rotated(a):
        pairs = torch.complex(a[..., :4], a[..., 4:])  # dimension i turns with i + half
        angle = torch.arange(6)[:, None] * 10_000.0 ** (-torch.arange(4) / 4)
        turned = pairs * torch.polar(torch.ones_like(angle), angle)
        return torch.cat([turned.real, turned.imag], -1)

    for keys in (None, mask):
        attended = nn.functional.scaled_dot_product_attention(
            rotated(q), rotated(k), v, attn_mask=None if keys is None else keys[:, None, None]
        )
        assert torch.allclose(layer(x, keys), layer.out(attended.transpose(1, 2).reshape(3, 6, 16)), atol=1e-5)


@pytest.mark.parametrize("kind", ["attention", "mixer"])
def test_a_body_folds_batch_dimensions_without_mixing_them(kind):
    torch.manual_seed(0)
    body = Body(kind, 6, 16, 2, 2, 24)
    x, mask = torch.randn(2, 3, 6, 16), torch.ones(3, 6, dtype=torch.bool)
    mask[1, 4:] = False
    together = body(x, mask)
    for i in range(2):
        for b in range(3):
            assert torch.allclose(together[i, b], body(x[i, b], mask[b]), atol=1e-5)


def test_rms_norm_scales_every_token_to_one():
    assert torch.allclose(rms_norm(100 * torch.randn(3, 6, 16)).square().mean(-1), torch.ones(3, 6), atol=1e-4)


def test_a_pooled_head_reads_the_mean_and_the_maximum_of_the_tokens_that_are_there():
    torch.manual_seed(0)
    head = PooledHead(8, 2)
    assert not head(torch.randn(3, 5, 8)).any()  # it starts at zero
    nn.init.normal_(head.out.weight)
    h = torch.randn(3, 4, 5, 8)
    hidden = nn.functional.silu(head.hidden(h))
    assert torch.allclose(head(h), head.out(torch.cat([hidden.mean(-2), hidden.amax(-2)], -1)), atol=1e-5)
    order = torch.randperm(5)
    assert torch.allclose(head(h), head(h[..., order, :]), atol=1e-5)
