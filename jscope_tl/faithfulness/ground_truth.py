"""`ground_truth`: prompts whose causes are validated on a model by swapping words, and the file format for them."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, overload

from jscope_tl.engine.progress import progress_bar
from jscope_tl.errors import InputError, count, nearest
from jscope_tl.faithfulness.candidates import parsed
from jscope_tl.faithfulness.families import FAMILIES, Family
from jscope_tl.faithfulness.pocket_families import FAMILIES as POCKET_FAMILIES
from jscope_tl.faithfulness.pocket_families import PocketFamily
from jscope_tl.faithfulness.validation import Found, ValidatedPrompt, search
from jscope_tl.model.view import ModelView
from jscope_tl.results.checks import need
from jscope_tl.results.files import plain, write_whole
from jscope_tl.results.restoring import restored

SCHEMA = 1


@dataclass(frozen=True)
class Yield:
    """The numbers of kept and dropped candidates of a family.

    Attributes:
        kept: the number of validated prompts.
        tried: the number of candidates.
        dropped: the number of dropped candidates for each reason.
    """

    kept: int
    tried: int
    dropped: dict[str, int]


@dataclass(frozen=True)
class GroundTruth(Sequence[ValidatedPrompt]):
    """A sequence of prompts with validated causes, which `jscope_tl.faithfulness.evaluate` accepts as ``prompts``.

    Attributes:
        model: the name of the model on which they were validated, or of its folder.
        seed: the seed that selects the prompts.
        n: the requested number of prompts of each family.
        yields: the numbers of kept and dropped candidates of each requested family, also if no prompt was kept.
        prompts: the prompts, ordered by family.
    """

    model: str
    seed: int
    n: int
    yields: dict[str, Yield]
    prompts: tuple[ValidatedPrompt, ...]

    def __post_init__(self) -> None:
        """Refuse fields that do not fit together, as in a damaged file."""
        need(
            all(prompt.family in self.yields for prompt in self.prompts),
            "every prompt has one of the requested families",
        )
        for prompt in self.prompts:
            places = [slot.position for slot in prompt.slots]
            need(
                sorted({*places} & {*range(len(prompt.tokens))}) == places, "slots are positions of a prompt, in order"
            )
            need(
                all(slot.swaps for slot in prompt.slots) and bool(prompt.causes), "slots have swaps, and one is a cause"
            )

    @property
    def tune(self) -> "GroundTruth":
        """One half of the prompts, on which to choose a method: every second prompt of each family, ordered by template."""
        return self._half(0)

    @property
    def report(self) -> "GroundTruth":
        """The other half of the prompts, on which to report results."""
        return self._half(1)

    def family(self, name: str) -> "GroundTruth":
        """The prompts of one family."""
        if name not in self.yields:
            raise InputError(
                f"There is no family {name!r} here.{nearest(name, self.yields)} There are {', '.join(self.yields)}."
            )
        return replace(self, prompts=tuple(prompt for prompt in self.prompts if prompt.family == name))

    def _half(self, which: int) -> "GroundTruth":
        ordered = sorted(self.prompts, key=lambda prompt: (list(self.yields).index(prompt.family), prompt.template))
        starts: dict[str, int] = {}
        for place, prompt in enumerate(ordered):
            starts.setdefault(prompt.family, place)
        kept = [p for place, p in enumerate(ordered) if (place - starts[p.family]) % 2 == which]
        return replace(self, prompts=tuple(kept))

    def __len__(self) -> int:
        return len(self.prompts)

    @overload
    def __getitem__(self, item: int) -> ValidatedPrompt: ...
    @overload
    def __getitem__(self, item: slice) -> tuple[ValidatedPrompt, ...]: ...
    def __getitem__(self, item: Any) -> Any:
        return self.prompts[item]

    def save(self, path: str | Path) -> Path:
        """Write a JSON file with one line for each prompt with its causes, slots and swaps. `load` reads it.

        Args:
            path: the file to write; its folder must exist.

        Raises:
            InputError: the path cannot be written to.
        """
        about = {
            "ground_truth": SCHEMA,
            **{name: plain(getattr(self, name)) for name in ("model", "seed", "n", "yields")},
        }
        head = json.dumps(about, indent=1, ensure_ascii=False)[:-2]
        each = ({**plain(prompt), "causes": list(prompt.causes)} for prompt in self.prompts)
        lines = ",\n".join("  " + json.dumps(prompt, ensure_ascii=False) for prompt in each)
        return write_whole(path, f'{head},\n "prompts": [\n{lines}\n ]\n}}\n'.encode())

    @classmethod
    def load(cls, path: str | Path) -> "GroundTruth":
        """Load a ground truth that `save` wrote.

        Args:
            path: the file.

        Raises:
            InputError: the file does not exist, or is not a ground truth.
        """
        try:
            found = json.loads(Path(path).read_text(encoding="utf-8"))
            schema = found.pop("ground_truth", None)
            if schema != SCHEMA:
                raise ValueError(f"its format 'ground_truth' is {schema}, this version reads {SCHEMA}")
            for prompt in found["prompts"]:
                prompt.pop("causes", None)  # they follow from the swaps
            return restored(cls, found, {})
        except Exception as error:
            raise InputError(
                f"{str(path)!r} is not a file of a ground truth ({type(error).__name__}: {error})."
            ) from error

    def __repr__(self) -> str:
        lines = [f"GroundTruth: {len(self)} prompts validated on {self.model}, seed {self.seed}"]
        for name, found in self.yields.items():
            why = ", ".join(f"{n} {reason}" for reason, n in sorted(found.dropped.items(), key=lambda item: -item[1]))
            why = why if found.tried else "the model has no filling whose words are one token each"
            lines.append(
                f"  {name:<18} {found.kept:>4} of {found.tried} candidates" + (f"   (dropped: {why})" if why else "")
            )
        return "\n".join(lines)


def ground_truth(
    model: Any,
    families: str | Family | Iterable[str | Family] | None = None,
    n: int = 40,
    seed: int = 0,
    *,
    progress: bool | None = None,
) -> GroundTruth:
    """Make prompts for which it is known which words determine this model's next token, validated by swapping words.

    A family is a task (indirect objects, agreement, capitals, series of days, ...). It has templates with slots, each for one word of a
    declared kind; one slot is the cause by construction. A prompt is kept if

    1. the model's most probable next token is the answer;
    2. every swap of the constructed cause changes it. Each slot is swapped for three other words of its kind: words of the opposite
       number or gender if the kind has these (the other form of the same word first), else any other words;
    3. no swap of a word that must not matter by construction changes it.

    The ``causes`` are then all slots for which every swap changes the answer. Further words may do so, such as the second mention of the
    key in a prompt that asks for its value. Every word and each of its swaps is one token at the same position. If the most probable
    token leads by less than 0.01 nats, rounding could change the result, and the prompt is dropped. Each swap also gives
    ``KL(p ‖ p_swapped)`` of the whole next-token distribution, with which the measure ``"swap"`` compares scores.

    The cost is one forward pass for each candidate and for each swap, in batches: about 30 for each prompt that is kept.

    Args:
        model: a `HookedTransformer` or `TransformerBridge` with a tokenizer, in evaluation mode.
        families: one or several names of `jscope_tl.faithfulness.FAMILIES`, ``"pocket"`` (the pocket model's held-out prompts) or your
            own `Family`. None: all of `FAMILIES`.
        n: the number of prompts of each family. A model may yield fewer, or none: `GroundTruth.yields` has the numbers and the reasons.
        seed: selects the prompts; the same seed, model and version give the same prompts.
        progress: a progress bar always (True), never (False), or if the call takes more than a second (None).

    Raises:
        InputError: an unknown family, kind or relation, a template that marks no cause, or a model without a tokenizer.

    Example:
        >>> import jscope_tl as js
        >>> model = js.load_pocket_model()
        >>> truth = js.ground_truth(model, "pocket assistant", n=2)
        >>> [len(prompt.causes) for prompt in truth]
        [1, 1]
        >>> found = js.faithfulness.evaluate(model, truth, ["log_prob", "chance"], "known_cause")
        >>> found["known_cause"].mean("log_prob").n
        2
    """
    chosen, wanted, start = _families(families), count("n", n, 1), count("seed", seed, 0)
    view = ModelView(model)
    if view.tokenizer is None:
        raise InputError(f"{view.name} has no tokenizer, which the families need; load the model with its tokenizer.")
    found: dict[str, Found] = {}
    with progress_bar(progress, "validated prompts", "prompt", total=wanted * len(chosen)) as bar:
        for place, family in enumerate(chosen):
            bar.set_postfix_str(family.name)
            found[family.name] = search(view, family, wanted, start, bar)
            bar.n = wanted * (place + 1)
            bar.refresh()
    yields = {name: Yield(len(f.prompts), f.tried, dict(f.dropped)) for name, f in found.items()}
    prompts = tuple(prompt for f in found.values() for prompt in sorted(f.prompts, key=lambda p: p.template))
    name = Path(view.name).name if Path(view.name).is_absolute() else view.name  # without the path of a local folder
    return GroundTruth(name, start, wanted, yields, prompts)


def _families(given: Any) -> list[Family | PocketFamily]:
    known: dict[str, Family | PocketFamily] = {**FAMILIES, **POCKET_FAMILIES}
    single = isinstance(given, str | Family) or not isinstance(given, Iterable)
    listed = list(FAMILIES) if given is None else [given] if single else list(given)
    chosen: dict[str, Family | PocketFamily] = {}
    for item in [name for family in listed for name in (POCKET_FAMILIES if family == "pocket" else [family])]:
        if not isinstance(item, Family) and not (isinstance(item, str) and item in known):
            raise InputError(
                f"There is no family {item!r}.{nearest(str(item), known)} Known: pocket, {', '.join(known)}."
            )
        family = item if isinstance(item, Family) else known[item]
        for template in getattr(family, "templates", ()):
            parsed(template)
        if chosen.setdefault(family.name, family) is not family:
            raise InputError(f"Two families are called {family.name!r}; give each a different name.")
    if not chosen:
        raise InputError("There are no families; give at least one, or None for all.")
    return list(chosen.values())
