"""The control of kNN-LM: the same mixture over as many tokens drawn at random from the store."""

from uptake.method import Way
from uptake.methods.knn_lm import KnnLm
from uptake.select import Everywhere

way = Way(KnnLm(draw="random"), Everywhere())
