"""TTT-NN (Hardt & Sun 2024): one gradient step on each of the query's neighbours, answer, forget.

Defaults are the paper's for GPT-2 (AdamW, clip 1, nearest first, pieces of the model's window), but for two:
the learning rate is chosen on the store, and of over 50 million weights the last four blocks are trained.
"""

from uptake.methods.contract.method import MethodSpec
from uptake.methods.finetune import Finetune
from uptake.text.select import Nearest

spec = MethodSpec(Finetune(), Nearest())
