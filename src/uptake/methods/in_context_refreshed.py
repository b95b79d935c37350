"""In-context that searches again as the text goes on (Ram et al. 2023): after every 128 tokens, here.

What comes next is predicted behind the passages found with what came last: `in-context` with `refresh` set.
"""

from uptake.methods.contract.method import MethodSpec
from uptake.methods.in_context import InContext

spec = MethodSpec(InContext(refresh=128))
