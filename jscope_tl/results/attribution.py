"""What an attribution returns: scores with their unit, error, prediction, weight basis, provenance and doubts.

Files and views are rooms of their own, which read results; the methods here that open them import them when called.
"""

from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jaxtyping import Float, Int
from torch import Tensor

from jscope_tl.errors import InputError, whole
from jscope_tl.engine.state import Basis

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class ScoredToken:
    """One position of a result: where, which token, how strong, how sure; at which hook point, in a layer map."""

    position: int
    token: int
    str_token: str
    score: float
    stderr: float | None
    hook_point: str | None = None


@dataclass(frozen=True)
class PredictedToken:
    """A candidate for the next token and its probability."""

    token: int
    str_token: str
    probability: float


@dataclass(frozen=True)
class Prediction:
    """The next-token distribution at the explained position: most probable tokens first, and the target's place in it."""

    top: tuple[PredictedToken, ...]
    target: PredictedToken
    target_rank: int


@dataclass(frozen=True)
class Provenance:
    """Where a result comes from.

    ``n_backward`` counts backward passes (rows pulled back). ``seed`` is that of the random probes, where there are any.
    """

    model_name: str
    model_class: str
    dtype: str
    device: str
    hook_point: str
    n_backward: int
    seed: int | None
    versions: dict[str, str]


@dataclass(frozen=True, eq=False)
class Attribution:
    """Scores of every position of a prompt for one prediction.

    A score is an unsigned norm in the unit that ``unit`` names. It is not a share of anything: scores of several
    positions do not add up, and scores of two units do not compare.

    Attributes:
        scores: ``[pos]``, or ``[layer, pos]`` in a layer map, float32 on the CPU; 0 after the explained position. BOS is
            scored like any other token.
        tokens: ``[pos]``, the prompt as ids.
        str_tokens: the same as text.
        position: the position whose next-token prediction is explained (not negative).
        scope: name of the scope.
        options: what the scope was asked, and under ``"resolved"`` what it did where it had a choice.
        unit: unit of the scores and of ``stderr``.
        stderr: standard error of estimated scores, in their shape; None for exact ones.
        prediction: the distribution that is explained.
        basis: weight processing of the model.
        provenance: model, versions, hook point, cost.
        warnings: doubts about these numbers, in sentences.
        bos_positions: positions of BOS tokens, which `top` leaves out by default.
        hook_points: the hook point of each row of a layer map; empty where scores are ``[pos]``.
    """

    scores: Float[Tensor, "*layer pos"]
    tokens: Int[Tensor, "pos"]
    str_tokens: list[str]
    position: int
    scope: str
    options: dict[str, Any]
    unit: str
    stderr: Float[Tensor, "*layer pos"] | None
    prediction: Prediction
    basis: Basis
    provenance: Provenance
    warnings: list[str] = field(default_factory=list)
    bos_positions: tuple[int, ...] = ()
    hook_points: tuple[str, ...] = ()

    def layer(self, which: int | str) -> "Attribution":
        """One row of a layer map as a result of its own, by number (negative: from the end) or by its hook point."""
        index = self.hook_points.index(which) if which in self.hook_points else whole(which)
        if index is None or not -len(self.hook_points) <= index < len(self.hook_points):
            rows = (
                f"0 to {len(self.hook_points) - 1} or a hook point"
                if self.hook_points
                else "none: this is no layer map"
            )
            raise InputError(f"There is no layer {which!r} in this result; it has {rows}.")
        stderr = None if self.stderr is None else self.stderr[index]
        at = replace(self.provenance, hook_point=self.hook_points[index])
        return replace(self, scores=self.scores[index], stderr=stderr, provenance=at, hook_points=())

    def top(self, k: int = 5, include_bos: bool = False) -> list[ScoredToken]:
        """The ``k`` highest scores, highest first; BOS (often an attention sink) only if asked for."""
        count = whole(k)
        if count is None or count < 1:
            raise InputError(f"k is how many positions to return, 1 or more; got {k!r}.")
        pos = len(self.str_tokens)
        order = self.scores.flatten().argsort(descending=True, stable=True).tolist()
        places = [divmod(i, pos) for i in order if i % pos <= self.position]
        kept = [(layer, i) for layer, i in places if include_bos or i not in self.bos_positions][:count]
        return [self.scored(i, layer) for layer, i in kept]

    def scored(self, position: int, layer: int = 0) -> ScoredToken:
        """The score of one position, at one row of a layer map."""
        at = (layer, position) if self.hook_points else position
        return ScoredToken(
            position=position,
            token=int(self.tokens[position]),
            str_token=self.str_tokens[position],
            score=float(self.scores[at]),
            stderr=None if self.stderr is None else float(self.stderr[at]),
            hook_point=self.hook_points[layer] if self.hook_points else None,
        )

    def to_dataframe(self) -> "pd.DataFrame":
        """One row per position: token, text, score, standard error, BOS or not, explained or not; the rest in ``attrs``.

        The index is ``position``; of a layer map ``hook_point`` and ``position``.
        """
        try:
            import pandas as pd
        except ImportError as error:
            raise ImportError("to_dataframe needs pandas: pip install pandas.") from error
        layers = range(max(1, len(self.hook_points)))
        frame = pd.DataFrame([vars(self.scored(i, layer)) for layer in layers for i in range(len(self.str_tokens))])
        frame["stderr"] = frame["stderr"].astype(float)
        frame["is_bos"] = frame["position"].isin(self.bos_positions)
        frame["is_explained"] = frame["position"] == self.position
        frame.attrs = {"scope": self.scope, "unit": self.unit, "model": self.provenance.model_name}
        if self.hook_points:
            return frame.set_index(["hook_point", "position"])
        return frame.drop(columns="hook_point").set_index("position")

    def save(self, path: str | Path) -> Path:
        """Write one safetensors file that `load` reads back: tensors as they are, everything else as JSON in its header."""
        from jscope_tl.results.files import save

        return save(self, path)

    @staticmethod
    def load(path: str | Path) -> "Attribution":
        """Read what `save` wrote. Nothing in the file is executed.

        Raises:
            InputError: there is no such file, it is not one of ours, or a newer version wrote it.
        """
        from jscope_tl.results.files import load

        return load(path)

    def __repr__(self) -> str:
        from jscope_tl.views.terminal import summary

        return summary(self)

    def _repr_html_(self) -> str:
        from jscope_tl.views.html import fragment

        return fragment(self)


@dataclass(frozen=True, eq=False)
class InfluencePattern:
    """The scores of one scope for the predictions at several positions, over all earlier positions.

    Row ``i`` holds what `attribute` returns with ``position=positions[i]``. Scores of one row compare with each other; of
    two rows only as far as the predictions do (a row whose prediction is certain is small throughout).

    Attributes:
        scores: ``[dest, src]``, float32 on the CPU; unsigned, 0 where ``src`` is after ``dest``.
        positions: the explained position of each row.
        targets: the token that each row explains or reports, and its probability.
        tokens: ``[src]``, the prompt as ids.
        str_tokens: the same as text.
        scope: name of the scope.
        options: what the scope was asked, and under ``"resolved"`` what it did at each position where it had a choice.
        unit: unit of the scores and of ``stderr``.
        stderr: ``[dest, src]``, standard error of estimated scores (0 in exact rows); None where all are exact.
        basis: weight processing of the model.
        provenance: model, versions, hook point, cost.
        warnings: doubts about these numbers, in sentences.
        bos_positions: positions of BOS tokens, which colour scales leave out.
    """

    scores: Float[Tensor, "dest src"]
    positions: tuple[int, ...]
    targets: tuple[PredictedToken, ...]
    tokens: Int[Tensor, "src"]
    str_tokens: list[str]
    scope: str
    options: dict[str, Any]
    unit: str
    stderr: Float[Tensor, "dest src"] | None
    basis: Basis
    provenance: Provenance
    warnings: list[str] = field(default_factory=list)
    bos_positions: tuple[int, ...] = ()

    def __repr__(self) -> str:
        shape = f"{len(self.positions)} x {len(self.str_tokens)}"
        return f"InfluencePattern: {self.scope} scope, [dest, src] = {shape}, in {self.unit}, at {self.provenance.hook_point}"


def as_pattern(result: InfluencePattern | Attribution) -> InfluencePattern:
    """An attribution as an influence pattern of one row."""
    if isinstance(result, InfluencePattern):
        return result
    shared = {f.name for f in fields(InfluencePattern)} - {"scores", "positions", "targets", "stderr"}
    return InfluencePattern(
        scores=result.scores.unsqueeze(0),
        positions=(result.position,),
        targets=(result.prediction.target,),
        stderr=None if result.stderr is None else result.stderr.unsqueeze(0),
        **{name: getattr(result, name) for name in shared},
    )
