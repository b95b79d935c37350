"""What is trained: an argument of every gradient method, one file a kind, each found there.

A kind is a `Trainable`, a frozen dataclass in a file of this folder; its name in lower case is what settings
call it. No file outside has to be edited.
"""

import importlib
import pkgutil

from uptake.adaptation.trainable.all import All
from uptake.adaptation.trainable.auto import Auto
from uptake.adaptation.trainable.lora import LoRA
from uptake.adaptation.trainable.named import Named
from uptake.adaptation.trainable.top import Top
from uptake.adaptation.trainable.trainable import Trainable, TrainableCopy

for _file in pkgutil.iter_modules(__path__):  # a kind is known to settings as soon as its file is
    importlib.import_module(f"{__name__}.{_file.name}")

__all__ = ["All", "Auto", "LoRA", "Named", "Top", "Trainable", "TrainableCopy"]
