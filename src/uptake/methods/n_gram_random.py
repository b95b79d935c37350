"""The control of the n-gram memory: the same mixture over as many passages drawn at random from the store."""

from uptake.methods.contract.method import MethodSpec
from uptake.methods.n_gram import NGram
from uptake.text.select import Everywhere

spec = MethodSpec(NGram(draw="random"), Everywhere())
