"""Uniform online fine-tuning (Hu et al. 2023, as a baseline): one step a document, all tokens alike.

Adam without decay, one step a document (a piece, where it is longer than the window), its averages
carried on. The rate is the largest that the paper tried; a small base model wants a larger one.
"""

from uptake.adaptation.optimizers import AdamW
from uptake.methods.contract.method import MethodSpec
from uptake.methods.finetune import Finetune
from uptake.text.select import Nothing

spec = MethodSpec(Finetune(optimizer=AdamW(weight_decay=0.0)), Nothing())
