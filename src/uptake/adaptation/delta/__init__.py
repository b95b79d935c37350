"""What an adaptation changed, as named parts; one file a kind of part, found there."""

from uptake.adaptation.delta.delta import Delta
from uptake.adaptation.delta.dense import Dense
from uptake.adaptation.delta.low_rank import LowRank
from uptake.adaptation.delta.overlay import Overlay, fingerprint, skeleton, wide
from uptake.adaptation.delta.part import Name, Part

__all__ = ["Delta", "Dense", "LowRank", "Name", "Overlay", "Part", "fingerprint", "skeleton", "wide"]
