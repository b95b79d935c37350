"""SIFT (Hübotter et al. 2024): TTT-NN on the neighbours that together are most informative about the query.

The steps are those of `ttt-nn`; which passages they are taken on is `Sift`'s choice, in its order.
Needs a store with vectors.
"""

from uptake.methods.contract.method import MethodSpec
from uptake.methods.finetune import Finetune
from uptake.text.select import Sift

spec = MethodSpec(Finetune(), Sift())
