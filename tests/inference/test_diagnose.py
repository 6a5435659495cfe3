"""What `diagnose` says of runs whose state is known: good, trapped, ambiguous, degenerate."""

from dataclasses import replace

import pytest
import torch

from probgram import Chain, Trajectories
from probgram.inference import Diagnosis, Finding, diagnose, sample, smc
from probgram.inference.diagnosis import finding
from probgram.inference.potentials import energy
from probgram.models import GRAM
from probgram.tasks import Queens, UnknownAnswers


class Small:
    """Answers are right where every token is below 3; the violations are the tokens that are not."""

    name = "small"

    def verify(self, x, y):
        return (y < 3).all(-1)

    def violations(self, x, y):
        return (y >= 3).sum(-1)


def make_run(tokens, heads=None, **changes) -> Trajectories:
    """From one token an answer, `[S, N]` or `[S, N, B]`."""
    answers = torch.as_tensor(tokens, dtype=torch.uint8)
    answers = (answers[..., None] if answers.dim() == 2 else answers)[..., None].expand(*[-1] * 3, 2)
    shape = answers.shape[:3]
    fields = {"x": torch.zeros(shape[2], 1), "answers": answers, "log_weights": torch.zeros(shape)}
    fields["heads"] = {name: torch.full(shape, float(logit)) for name, logit in (heads or {}).items()}
    return Trajectories(**(fields | changes))


def statuses(diagnosis: Diagnosis) -> dict[str, str]:
    return {found.name: found.status for found in diagnosis}


def test_a_run_that_agrees_on_a_right_answer_is_fine_throughout():
    diagnosis = diagnose(make_run([[1] * 20] * 10, heads={"value": 5.0}), Small())
    assert diagnosis.status == "fine" and set(statuses(diagnosis)) >= {
        "verified",
        "settled",
        "trapped",
        "apart",
        "width",
    }
    assert all(found.advice == "" for found in diagnosis)
    assert diagnosis["verified"].figure == "1.00 of the weight"
    assert diagnosis["answers"].sentence == "All trajectories give the same answer."
    assert diagnosis["settled"].figure == "0.00 still changing, at rest since depth 1"


def test_a_trapped_run_is_in_trouble_and_more_depth_is_not_advised():
    """Half sit on one wrong answer, half on another, from the start."""
    run = make_run([[5] * 10 + [6] * 10] * 12, heads={"value": 5.0})
    diagnosis = diagnose(run, Small())
    found = statuses(diagnosis)
    assert found["verified"] == found["trapped"] == found["apart"] == found["value head"] == "trouble"
    assert found["settled"] == "fine"
    assert diagnosis["trapped"].figure == "1.00; of those trapped 0.00 change and 0.00 become right in a step"
    assert "more depth alone will not free them" in diagnosis["trapped"].advice
    assert diagnosis["apart"].figure == "R-hat inf over trajectories, largest of answer"
    assert diagnosis["value head"].figure == "says 0.99, right 0.00"


def test_trapped_trajectories_that_get_out_are_advised_more_depth():
    """One of ten becomes right at every step from the seventh on."""
    rows = [[5] * 10] * 6 + [[1] * k + [5] * (10 - k) for k in range(1, 7)]
    found = diagnose(make_run(rows), Small())["trapped"]
    assert found.status == "look" and found.advice.startswith("more depth")
    assert found.figure.startswith("0.40; of those trapped 0.13")  # 1 in 10, 9, 8, 7, 6, 5 pooled: 6 of 45


def test_several_right_answers_are_no_trouble_however_far_apart():
    rows = [[0, 1, 2] * 6 + [0, 1]] * 12
    diagnosis = diagnose(make_run(rows, heads={"value": 5.0}), Small())
    assert diagnosis.status == "fine"
    assert diagnosis["answers"].figure == "3 different, entropy 1.10 nats"
    assert diagnosis["apart"].sentence == "Trajectories keep to different answers, which are right."
    assert diagnosis["answers"].sentence == "Trajectories give different answers, which differ at 2 of 2 positions."
    without = diagnose(make_run(rows, heads={"value": 5.0}))
    assert "verified" not in statuses(without) and "no task to verify" in without.left_out[0]


def test_answers_drawn_once_ask_for_more_width():
    found = diagnose(make_run([[0] * 10 + list(range(1, 11))]))["unseen"]
    assert found.status == "look" and found.advice == "more width"
    assert found.figure == "0.50 of the probability; an answer not drawn has at most 0.14"
    assert diagnose(make_run([list(range(20))]))["unseen"].status == "trouble"


def test_answers_that_still_change_ask_for_depth_unless_they_always_will():
    fading = [[s % 2] * (12 - s) + [0] * (8 + s) for s in range(8)]  # 5 of 20 at the last step
    found = diagnose(make_run(fading))["settled"]
    assert found.status == "look" and found.advice == "more depth"
    for_ever = [[s % 2] * 10 + [0] * 10 for s in range(8)]
    found = diagnose(make_run(for_ever))["settled"]
    assert found.status == "trouble" and found.advice.startswith("less noise")


def test_answers_that_were_right_before_ask_for_less_depth():
    found = diagnose(make_run([[5] * 4, [1] * 4, [1] * 4, [5] * 4, [5] * 4]), Small())["verified"]
    assert found.status == "trouble" and found.advice == "less depth: after 2 steps 1.00 was right"


def test_degenerate_weights_are_in_trouble():
    log_weights = torch.zeros(2, 40, 1)
    log_weights[-1, 0] = 30.0
    diagnosis = diagnose(make_run([[1] * 40] * 2, log_weights=log_weights), Small())
    assert diagnosis["weights"].status == "trouble" and diagnosis["weights"].figure == "effective 0.03 of N"
    assert diagnosis["weights"].advice.startswith("resampling (resample=systematic)")
    heavy = 40 * torch.rand(1, 200, 1, generator=torch.Generator().manual_seed(0))
    assert diagnose(make_run([[1] * 200], log_weights=heavy))["tail"].status == "trouble"
    dead = torch.full((2, 40, 1), -torch.inf)
    diagnosis = diagnose(make_run([[1] * 40] * 2, heads={"value": 1.0}, log_weights=dead), Small())
    assert diagnosis["weights"].status == "trouble" and "1 problem without any" in diagnosis["weights"].figure
    assert diagnosis["verified"].status == "trouble" and str(diagnosis)


def test_a_run_resampled_to_one_line_has_lost_its_ancestors():
    ancestors = torch.arange(20).repeat(4, 1)
    ancestors[2] = 3
    diagnosis = diagnose(make_run([[1] * 20] * 4, ancestors=ancestors[..., None].int()), Small())
    assert diagnosis["ancestors"].status == "trouble" and diagnosis["ancestors"].figure == "0.05 of the first slots"
    assert "less resampling" in diagnosis["ancestors"].advice


def test_islands_that_disagree_ask_for_width():
    run = make_run([[1] * 40], heads={"value": 0.0}, settings={"islands": 2})
    run.heads["value"][:, :20] += torch.linspace(3, 4, 20)[:, None]
    run.heads["value"][:, 20:] += torch.linspace(0, 1, 20)[:, None]
    found = diagnose(run)["width"]
    assert found.status == "look" and found.advice == "more width" and "another run" in found.sentence


def test_islands_that_exchange_particles_are_no_second_opinion():
    ancestors = torch.arange(16)[None, :, None].int().expand(2, 16, 1)
    settings = {"islands": 2, "resample": "systematic", "exchange": None}
    run = make_run([[1] * 16] * 2, heads={"value": 0.0}, ancestors=ancestors, settings=settings)
    assert "R-hat" in diagnose(run)["width"].figure
    said = str(diagnose(replace(run, settings=settings | {"exchange": "ring"})))
    assert "whether islands agree: a resampled run needs several that exchange nothing" in said
    assert "R-hat" not in said


def test_a_chain_that_draws_copies_together_is_told_of_where_copies_are_made():
    chain = Chain.from_module(lambda h, context: 0.1 * h, lambda h: h[..., None].expand(*h.shape, 2), (2,))
    run = sample(chain, torch.zeros(1, 1), width=8, depth=4)
    found = diagnose(run, chain=chain)["stability"]
    assert found.status == "fine" and found.figure == "log growth -2.30 nats a step"
    own = torch.arange(8)[None, :, None].expand(4, 8, 1).int()
    resampled = Trajectories(x=run.x, answers=run.answers, log_weights=run.log_weights, ancestors=own)
    found = diagnose(resampled, chain=chain)["stability"]
    assert found.status == "look" and found.sentence == "Copies that resampling makes stay copies."


# -- several problems, and what is missing --------------------------------------------------------------------


def test_several_problems_are_counted_and_a_few_bad_ones_are_to_look_at():
    tokens = torch.ones(9, 20, 40)
    tokens[:, :, 7] = 5
    found = diagnose(make_run(tokens), Small())["verified"]
    assert found.status == "look" and found.sentence == "In 1 of 40 problems no answer passes verification."
    assert found.figure == "1.00 (0.00 to 1.00) of the weight"
    tokens[:, :, :4] = 5
    assert diagnose(make_run(tokens), Small())["verified"].status == "trouble"


def test_what_may_come_by_chance_is_not_counted_in_few():
    grades = torch.tensor([1] + [0] * 19)
    clauses = ("fine", "look", "trouble")
    assert finding("width", grades, "", clauses, "more").status == "look"
    assert finding("width", grades, "", clauses, "more", chance=True).status == "fine"
    both = finding("x", torch.tensor([2, 1, 1, 0]), "", clauses, ("a", "b"))
    assert both.sentence == "In 1 of 4 problems trouble, in 2 of 4 problems look." and both.advice == "b"


def test_what_a_run_did_not_keep_is_left_out_with_its_reason():
    diagnosis = diagnose(make_run([[1] * 20], depths=(16,)))
    assert "settled" not in statuses(diagnosis)
    assert any('keep="paths"' in reason for reason in diagnosis.left_out)
    with pytest.raises(KeyError, match="no finding is called 'settled'"):
        diagnosis["settled"]
    empty = make_run([[1] * 20])
    empty = Trajectories(x=empty.x, answers=empty.answers[..., :0], log_weights=empty.log_weights)
    with pytest.raises(ValueError, match="diagnose needs answers, and the run has none"):
        diagnose(empty)


def test_a_task_that_cannot_verify_says_so_and_the_rest_is_told():
    class Silent:
        name = "silent"

        def verify(self, x, y):
            raise UnknownAnswers("the answers of silent are not known")

        def violations(self, x, y):
            raise UnknownAnswers("the answers of silent are not known")

    diagnosis = diagnose(make_run([[1] * 20] * 9), Silent())
    assert "the answers of silent are not known" in diagnosis.left_out[0] and "settled" in statuses(diagnosis)


def test_the_printed_words_have_every_finding_the_worst_first():
    diagnosis = Diagnosis(
        (Finding("a", "fine", "1", "All is well."), Finding("b", "trouble", "2", "It is not.", "more width")),
        ("c: it was not kept",),
        "small, 2 trajectories",
    )
    lines = [line.strip() for line in str(diagnosis).splitlines() if line]
    assert lines == [
        "small, 2 trajectories: 1 in trouble, 1 fine",
        "trouble  b            2",
        "It is not.",
        "Try more width.",
        "fine     a            1",
        "All is well.",
        "not looked at",
        "c: it was not kept.",
    ]


@pytest.mark.parametrize("filtered", [False, True])
def test_the_shipped_network_on_a_held_out_board(filtered):
    task, chain = Queens(8), GRAM.from_pretrained("queens8")
    x = task.examples("test")[0][:2]
    if filtered:
        run = smc.run(chain, x, width=8, depth=8, potential=energy(task), keep="latents", ess_threshold=1.0)
        assert {"weights", "ancestors"} <= set(statuses(diagnose(run, task, chain)))
    else:
        diagnosis = diagnose(sample(chain, x, 8, 8, task=task.name), task, chain)
        assert diagnosis["verified"].status == "fine" and diagnosis["stability"].status == "fine"
        assert str(diagnosis).startswith("queens8, 8 trajectories × 8 depth steps, 2 problems: ")
