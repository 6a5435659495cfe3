"""What a run in JAX returns: weighted trajectories as arrays of NumPy, moved to the host once, at its end.

The twin of `probgram.trajectories`, with the same fields, properties and files. `state` and `states` may be any
pytree of JAX arrays, and stay on their devices.
"""

import warnings
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import jax
import numpy as np

from probgram.run import HALF_TYPES, Run, normalised, warn_untilted

if TYPE_CHECKING:
    from probgram import trajectories


class DistinctAnswers(NamedTuple):
    """The different answers of one problem, the most probable first.

    Fields:
        answers: `[M, L]`.
        shares: `[M]`, posterior probability of each, summing to 1.
    """

    answers: np.ndarray
    shares: np.ndarray


@dataclass(frozen=True, eq=False, repr=False)
class Trajectories(Run[np.ndarray]):
    """N weighted trajectories of B problems over S recorded depth steps, as NumPy's arrays.

    `probgram.run.Run` says what its fields hold, and has its sizes, files and conversion to ArviZ.
    """

    library: ClassVar[str] = "jax"
    framework: ClassVar[str] = "np"

    @staticmethod
    def as_stored(values: np.ndarray, dtype: str) -> np.ndarray:
        """An array that a file holds as one of a type; half types are stored as integers."""
        try:
            wanted = jax.numpy.dtype(dtype)
        except TypeError as error:
            raise ValueError(f"there is no type {dtype!r}") from error
        return values.view(wanted) if dtype in HALF_TYPES else values.astype(wanted, copy=False)

    @staticmethod
    def each_leaf(function: Callable[[Any], Any], state: Any) -> Any:
        """Apply a function to every leaf of a state."""
        return jax.tree.map(function, state)

    def to_torch(self) -> "trajectories.Trajectories":
        """The run as PyTorch has it, for plots, reports and diagnosis; it shares its memory with this one."""
        from probgram import trajectories
        from probgram.fields import as_array, type_of

        def converted(values: Any) -> Any:
            if not hasattr(values, "dtype"):  # a plain number in a state
                return values
            return trajectories.Trajectories.as_stored(as_array(values), type_of(values))

        with warnings.catch_warnings():
            # JAX's arrays cannot be written to, nor are a run's tensors ever.
            warnings.filterwarnings("ignore", "The given NumPy array is not writable", UserWarning)
            made = {
                f.name: jax.tree.map(converted, getattr(self, f.name))
                for f in fields(self)
                if f.name not in ("depths", "settings")
            }
            return trajectories.Trajectories(**made, depths=self.depths, settings=self.settings)

    # -- weights ----------------------------------------------------------------------------------------------

    @property
    def weights(self) -> np.ndarray:
        """Normalised weights, float64 `[S, N, B]`; zeros where all of a problem's vanished."""
        return normalised(self.log_weights)

    @property
    def ess(self) -> np.ndarray:
        """Effective sample size 1 / Σ W² at every depth step, `[S, B]`; 0 where all weights vanished."""
        if self.effective is not None:
            return self.effective
        squares = np.square(self.weights).sum(1)
        return np.where(squares > 0, 1 / np.where(squares > 0, squares, 1.0), 0.0)

    @property
    def untilted(self) -> "Trajectories":
        """The same trajectories weighted without the last potential, psi_t divided out.

        What is left is the model's own law (with its observations). A warning says where too few effective
        particles carry it; to estimate p(y | x) itself, run without a potential.
        """
        if self.log_potential is None:
            return self
        last, none = self.log_weights[-1], np.isneginf(self.log_potential)
        # A trajectory of psi = 0 has no weight to divide: the model's own law is lost there.
        log_weights = last - np.where(none, 0.0, self.log_potential).astype(self.log_potential.dtype)
        log_weights = np.concatenate([self.log_weights[:-1], log_weights[None]])
        plain = replace(self, log_weights=log_weights, effective=None, log_potential=None)
        warn_untilted(plain.ess[-1], self.width)
        return plain

    # -- lines and answers ------------------------------------------------------------------------------------

    def lines(self) -> np.ndarray:
        """The slot each final trajectory occupied at every depth step: int64 `[S, N, B]`.

        `np.take_along_axis(answers[s], lines[s][..., None], 0)` is each trajectory's own past. Without resampling
        these are the slots themselves.
        """
        depth, width, problems = self.log_weights.shape
        slot = np.broadcast_to(np.arange(width)[:, None], (width, problems))
        rows = [slot]
        for s in range(depth - 1, 0, -1):
            if self.ancestors is not None:
                slot = np.take_along_axis(self.ancestors[s].astype(np.int64), slot, 0)
            rows.append(slot)
        return np.stack(rows[::-1])

    def answers_along_lines(self) -> np.ndarray:
        """Answers over depth of the final trajectories, `[S, N, B, L]`."""
        if self.ancestors is None:
            return self.answers
        return np.take_along_axis(self.answers, self.lines()[..., None], 1)

    def distinct(self, problem: int = 0, step: int = -1) -> DistinctAnswers:
        """The different answers of one problem with their posterior shares, the most probable first.

        Args:
            problem: index among the B problems.
            step: row of the recorded depth steps, by default the last.

        Raises:
            IndexError: no such problem.
        """
        one = self[problem]
        index = one.answer_shares(step)[0][:, 0]  # [N]
        _, slot, number = np.unique(index, return_index=True, return_inverse=True)
        totals = np.bincount(number.reshape(-1), normalised(one.log_weights[step])[:, 0])
        order = np.argsort(-totals, kind="stable")
        order = order[totals[order] > 0]
        # Rounding may have made a sum of weights exceed 1.
        return DistinctAnswers(one.answers[step, slot[order], 0], totals[order].clip(max=1.0))

    def answer_shares(self, step: int = -1) -> tuple[np.ndarray, np.ndarray]:
        """For each slot: a number of its answer, and the total weight of that answer in its problem.

        Returns:
            `(index, shares)`, int64 and as `weights`, `[N, B]`; slots of one problem have equal numbers exactly
            where their answers are equal.
        """
        answers = self.answers[step]  # [N, B, L]
        if not answers.shape[-1]:
            raise ValueError("the run has no answers: its model reads none out of its states")
        n, b, _ = answers.shape
        if answers.dtype.kind not in "iub":  # their bits; -0 is 0
            answers = (answers + answers.dtype.type(0)).view(f"i{answers.dtype.itemsize}")
        rows = np.concatenate([np.broadcast_to(np.arange(b)[:, None], (n, b, 1)), answers.astype(np.int64)], -1)
        # As bytes, the first the most significant, so that they sort as the numbers do.
        packed = (rows - rows.min()).astype(">u8").reshape(n * b, -1)
        packed = np.ascontiguousarray(packed).view([("", np.void, packed.shape[1] * packed.itemsize)])[:, 0]
        index = np.unique(packed, return_inverse=True)[1].reshape(-1)
        totals = np.bincount(index, normalised(self.log_weights[step]).reshape(-1))
        return index.reshape(n, b), totals[index].reshape(n, b)


def seed_of(key: jax.Array) -> int:
    """The number by which a run knows a typed key: the seed it was made of, else one as good as unique."""
    number = 0
    for word in np.asarray(jax.random.key_data(key)).tolist():
        number = number << 32 | word
    return number % 2**63  # a netCDF attribute has 64 bits
