"""Example prompts, with their targets, and their causes if these are known by construction."""

from dataclasses import dataclass

from jscope_tl.pocket import pocket_prompts


@dataclass(frozen=True)
class Example:
    """An example prompt.

    Attributes:
        prompt: the text of the prompt.
        target, baseline: the explained token, and the token against which it is explained; None: the model's prediction, without a
            baseline.
        cause: the words that determine the target by construction; empty if they are not known.
    """

    prompt: str
    target: str | None = None
    baseline: str | None = None
    cause: tuple[str, ...] = ()


POCKET_TASKS = ("agreement", "politics", "assistant", "detective", "translation", "repetition")
PAPER = (
    Example("When Mary and John went to the store, John gave a drink to", " Mary", " John", ("Mary",)),
    Example("It was clear to Alice that the old keys behind the cabinet", " were", " was", ("keys",)),
    Example("As a state-of-the-art AI assistant, you never argue or deceive, because you are", " truthful"),
    Example(
        "Tom loves Korean food. He grew up in the South and goes to Columbia. He is a", " liberal", " conservative"
    ),
    Example("French: Nous l'appelons lentille jacobienne. English: We call it Jacobian"),
    Example("12, 15, 18, 21, 24, 27, 30, 33, 36,"),
)
"""Two prompts with known causes, and prompts of the paper (Figs. 1 to 3)."""


def examples(of_pocket_model: bool) -> list[Example]:
    """The examples for the pocket model, or for other models."""
    if not of_pocket_model:
        return list(PAPER)
    made = [pocket_prompts(task, 1)[0] for task in POCKET_TASKS]
    known = [Example(p.text, p.target, None, tuple(p.text.split()[i - 1] for i in p.causes)) for p in made]
    return [*known, Example("29 , 35 , 41 , 47 , 53 , 59 , 53 , 47 , 41 ,")]
