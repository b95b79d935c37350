"""RetoMaton (Alon et al. 2022): kNN-LM that follows its neighbours on, and searches where they run low."""

from uptake.methods.contract.method import MethodSpec
from uptake.methods.knn_lm import KnnLm
from uptake.text.select import Everywhere

spec = MethodSpec(KnnLm(pointers=16), Everywhere())
