"""The control of RETRO: the same network beside as many chunks drawn at random from the store."""

from uptake.method import Way
from uptake.methods.retro import Retro
from uptake.select import Everywhere

way = Way(Retro(draw="random"), Everywhere())
