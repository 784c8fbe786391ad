"""The functions that answer requests, by the last part of the request's address."""

from jscope_tl.explorer.answers import answer, control, explain, predict, tokens
from jscope_tl.explorer.corpus_runs import runs
from jscope_tl.explorer.interventions import ablate, edges, heads

QUESTIONS = {
    "tokens": tokens,
    "predict": predict,
    "explain": explain,
    "control": control,
    "answer": answer,
    "ablate": ablate,
    "heads": heads,
    "edges": edges,
    "runs": runs,
}
