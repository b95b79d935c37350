"""The control of TTT-NN: the same training on passages drawn at random from the same store.

What it gains is the gain of training on text of the domain; only what TTT-NN gains beyond it is
due to the neighbours.
"""

from uptake.methods.contract.method import MethodSpec
from uptake.methods.finetune import Finetune
from uptake.text.select import Random

spec = MethodSpec(Finetune(), Random())
