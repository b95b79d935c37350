"""TTT-NN (Hardt & Sun 2024): train on the query's nearest neighbours, one step each, answer, forget.

Defaults are the paper's for GPT-2: all weights, AdamW at 2e-5, clip 1, nearest first, pieces of
the model's window. A small base model wants a larger learning rate.
"""

from uptake.methods.contract.method import MethodSpec
from uptake.methods.finetune import Finetune
from uptake.text.select import Nearest

spec = MethodSpec(Finetune(), Nearest())
