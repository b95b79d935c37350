"""Dynamic evaluation (Krause et al. 2018): learn the text so far, and each piece once it is scored.

It needs no store: what it learns is the prefix and then the answer itself, piece by piece, every
token scored before it is learnt. This is the plain gradient variant.
"""

from uptake.method import Way
from uptake.methods.finetune import Finetune
from uptake.select import Nothing

way = Way(Finetune(own_prefix=True), Nothing(), segment=256)
