"""RetoMaton (Alon et al. 2022): kNN-LM that follows its neighbours on, and searches where they run low."""

from uptake.method import Way
from uptake.methods.knn_lm import KnnLm
from uptake.select import Everywhere

way = Way(KnnLm(pointers=16), Everywhere())
