"""The control of RETRO: the same network with as many chunks drawn at random from the store."""

from uptake.methods.contract.method import MethodSpec
from uptake.methods.retro import Retro
from uptake.text.select import Everywhere

spec = MethodSpec(Retro(draw="random"), Everywhere())
