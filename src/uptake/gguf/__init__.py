"""GGUF files as models: read with bounds, dequantised once, kept in a cache.

Knows nothing of language models as the rest of Uptake sees them: it makes folders that transformers reads.
"""

from uptake.gguf.header import is_gguf as is_gguf
from uptake.gguf.models import Dequantised as Dequantised
from uptake.gguf.models import dequantised as dequantised
