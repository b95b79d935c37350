"""The control of kNN-LM: the same mixture over as many tokens drawn at random from the store."""

from uptake.methods.contract.method import MethodSpec
from uptake.methods.knn_lm import KnnLm
from uptake.text.select import Everywhere

spec = MethodSpec(KnnLm(draw="random"), Everywhere())
