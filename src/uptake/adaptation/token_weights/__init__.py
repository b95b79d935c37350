"""How much each token of what is read counts: an argument of every gradient method, not a method.

Weights are of characters' spans, not of some tokenizer's tokens, so that one choice serves every
model. A choice with files or networks behind it loads them when it is first used.
"""

from uptake.adaptation.token_weights.base import ByLoss as ByLoss
from uptake.adaptation.token_weights.base import Spans as Spans
from uptake.adaptation.token_weights.base import TokenWeights as TokenWeights
from uptake.adaptation.token_weights.base import Uniform as Uniform
from uptake.adaptation.token_weights.by_loss import BaseLoss as BaseLoss
from uptake.adaptation.token_weights.by_loss import RandomTokens as RandomTokens
from uptake.adaptation.token_weights.camels import Camels as Camels
from uptake.adaptation.token_weights.salient import SalientSpans as SalientSpans
from uptake.adaptation.token_weights.tfidf import TfIdf as TfIdf
