"""The pocket model: a small trained language model, its vocabulary, and prompts with known causes."""

from jscope_tl.pocket.load import load_pocket_model, pocket_folder
from jscope_tl.pocket.prompts import PocketPrompt, pocket_prompts, pocket_tasks

__all__ = ["PocketPrompt", "load_pocket_model", "pocket_folder", "pocket_prompts", "pocket_tasks"]
