"""NPLM and Transformer-N (Sun & Iyyer 2021) as transformers has models, found by their configuration.

A neural probabilistic language model reads its last tokens side by side and learnt averages of those
before them; Transformer-N does so in its first layer alone. `register` lets transformers load them.
"""


def register() -> None:
    """Let transformers' automatic classes find the kind "nplm"; to call it again changes nothing."""
    from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

    from uptake.lm.nplm.configuration import NPLMConfig
    from uptake.lm.nplm.network import NPLMForCausalLM, NPLMModel

    AutoConfig.register(NPLMConfig.model_type, NPLMConfig, exist_ok=True)
    AutoModel.register(NPLMConfig, NPLMModel, exist_ok=True)
    AutoModelForCausalLM.register(NPLMConfig, NPLMForCausalLM, exist_ok=True)
