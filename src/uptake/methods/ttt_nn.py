"""TTT-NN (Hardt & Sun 2024): one gradient step on each of the query's neighbours, answer, forget.

Defaults are the paper's for GPT-2: all weights, AdamW at 2e-5, clip 1, nearest first, pieces of
the model's window. A small base model wants a larger learning rate.
"""

from uptake.methods.contract.method import MethodSpec
from uptake.methods.finetune import Finetune
from uptake.text.select import Nearest

spec = MethodSpec(Finetune(), Nearest())
