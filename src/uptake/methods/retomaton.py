"""RetoMaton (Alon et al. 2022): kNN-LM that follows pointers and searches only when few are left."""

from uptake.methods.contract.method import MethodSpec
from uptake.methods.knn_lm import KnnLm
from uptake.text.select import Everywhere

spec = MethodSpec(KnnLm(pointers=16), Everywhere())
